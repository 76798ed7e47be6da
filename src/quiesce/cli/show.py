"""quiesce show"""

from __future__ import annotations

from rich.markup import escape

from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json, Reference
from quiesce.model.names import parse_reference
from quiesce.model.tree import Checkpoint
from quiesce.operations.tree import show


def command(checkpoint: Reference, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Show all that is known of one checkpoint: its label and the evidence for it."""
    session.run(
        lambda context: show(context, parse_reference(checkpoint)),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=render.checkpoint_json,
        show=_show,
    )


def _show(node: Checkpoint) -> None:
    out = session.out
    out.print(render.node_line(node))
    out.print(f"id        {node.id}")
    out.print(f"kind      {node.kind.value}, required {node.required.value}")
    for disk in node.disks:
        out.print(f"disk      {escape(disk.target)}  {escape(disk.path)}")
    for file in node.files:
        out.print(f"{file.role.value:<9} {escape(file.path)}")
    if node.excluded:
        out.print(f"left out  {escape(', '.join(node.excluded))}")
    out.print("phases    " + ", ".join(f"{name} {value / 1000:.1f} ms" for name, value in node.phases_us.items()))
    for warning in node.warnings:
        out.print(f"warning   {escape(warning)}")
    if node.writers:
        out.print(render.writers_table(node.writers))
    if node.filesystems:
        out.print(render.filesystems_table(node.filesystems))
