"""quiesce divergence"""

from __future__ import annotations

from rich.table import Table

from quiesce.cli import terminal
from quiesce.cli.options import Reference
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.divergence import NOTHING_KNOWN, Agreement
from quiesce.operations.divergence import Divergence, divergence

COLOURS = {Agreement.AGREES: "green", Agreement.SILENT: "dim", Agreement.UNKNOWN: "yellow", Agreement.MOVED: "red"}


def show_divergence(found: Divergence) -> None:
    references = ", ".join(f"{node.vm_name}@{node.name}" for node in found.checkpoints)
    if not found.servers:
        terminal.out.print(f"no other server is known to belong to {terminal.text(references)}")
        return
    table = Table("server", "", "application", box=None, pad_edge=False, header_style="bold")
    for server in found.servers:
        texts = [finding.text for finding in server.findings] or [NOTHING_KNOWN]
        table.add_row(
            terminal.text(server.vm_name), f"[{COLOURS[server.verdict]}]{server.verdict.value}[/]", terminal.text(texts[0])
        )
        for text in texts[1:]:
            table.add_row("", "", terminal.text(text))
    terminal.out.print(f"if {terminal.text(references)} were restored:")
    terminal.out.print(table)


@verb(show_divergence, only_reads=True)
def command(context: Context, checkpoint: Reference) -> Divergence:
    """Show which other servers would disagree with a VM if only this VM were restored. Changes nothing.

    Other servers are: the VMs that were checkpointed together with this one, the external servers of that group, and all VMs
    that are in a group with this VM now. Each is asked where its applications stand. For example, db1 disagrees with a restored
    web1 if it has committed transactions since the checkpoint was taken.
    """
    return divergence(context, context.reference(checkpoint))
