"""quiesce delete"""

from __future__ import annotations

from rich.markup import escape

from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json, Reference
from quiesce.model.names import parse_reference
from quiesce.model.tree import Checkpoint
from quiesce.operations.delete import delete


def command(checkpoint: Reference, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Delete a checkpoint no other is based on. What the VM is doing now is not touched."""
    session.run(
        lambda context: delete(context, parse_reference(checkpoint)),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=lambda node: {"deleted": render.checkpoint_json(node)},
        show=_show,
    )


def _show(node: Checkpoint) -> None:
    session.out.print(f"deleted [bold]{escape(node.vm_name)}@{escape(node.name)}[/]")
