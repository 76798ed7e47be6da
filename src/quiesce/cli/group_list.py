"""quiesce group list"""

from __future__ import annotations

from rich.table import Table

from quiesce.cli import terminal
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.group import Shown, list_groups


def _show(found: list[Shown]) -> None:
    table = Table("group", "members", "checkpoints", box=None, pad_edge=False, header_style="bold")
    for item in found:
        names = ", ".join(f"{member.vm_name}:{member.tier.value}" for member in item.members)
        table.add_row(terminal.text(item.group.name), terminal.text(names), str(len(item.checkpoints)))
    terminal.out.print(table)


@verb(_show, only_reads=True)
def command(context: Context) -> list[Shown]:
    """List the groups, their members, and how many checkpoints they have."""
    return list_groups(context)
