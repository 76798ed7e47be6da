"""quiesce divergence"""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from quiesce.cli import session
from quiesce.cli.options import CatalogUrl, Connect, Json, Reference
from quiesce.model.divergence import NOTHING_KNOWN, Agreement, describe
from quiesce.model.names import parse_reference
from quiesce.operations.divergence import Divergence, divergence

COLOURS = {Agreement.AGREES: "green", Agreement.SILENT: "dim", Agreement.UNKNOWN: "yellow", Agreement.MOVED: "red"}


def command(checkpoint: Reference, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Show which servers would disagree with a VM if only this VM were restored to a checkpoint. Changes nothing.

    Asks the guests for the positions that their applications have now: the other members of the group's checkpoint, if it is
    one; external servers; and all VMs that are in a group with this VM.
    """
    session.run(
        lambda context: divergence(context, parse_reference(checkpoint)),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=to_json,
        show=show,
    )


def to_json(found: Divergence) -> dict[str, Any]:
    return {
        "checkpoints": [{"vm": node.vm_name, "id": node.id, "name": node.name} for node in found.checkpoints],
        "diverges": not all(server.agrees for server in found.servers),
        "servers": describe(found.servers),
    }


def show(found: Divergence) -> None:
    references = ", ".join(f"{node.vm_name}@{node.name}" for node in found.checkpoints)
    if not found.servers:
        session.out.print(f"no other server is known to belong to {escape(references)}")
        return
    table = Table("server", "", "application", box=None, pad_edge=False, header_style="bold")
    for server in found.servers:
        said = [finding.text for finding in server.findings] or [NOTHING_KNOWN]
        table.add_row(escape(server.vm_name), f"[{COLOURS[server.verdict]}]{server.verdict.value}[/]", escape(said[0]))
        for text in said[1:]:
            table.add_row("", "", escape(text))
    session.out.print(f"if {escape(references)} were restored:")
    session.out.print(table)
