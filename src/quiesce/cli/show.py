"""quiesce show"""

from __future__ import annotations

from quiesce.cli import render, terminal
from quiesce.cli.options import Reference
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.tree import Checkpoint
from quiesce.operations.tree import show_checkpoint


def _show(node: Checkpoint) -> None:
    out = terminal.out
    out.print(render.node_line(node))
    out.print(f"id        {terminal.text(node.id)}")
    out.print(f"kind      {node.kind.value}, required {node.required.value}")
    for disk in node.disks:
        out.print(f"disk      {terminal.text(disk.target)}  {terminal.text(disk.path)}")
    for file in node.files:
        out.print(f"{file.role.value:<9} {terminal.text(file.path)}")
    if node.excluded:
        out.print(f"left out  {terminal.text(', '.join(node.excluded))}")
    out.print(
        "phases    " + ", ".join(f"{terminal.text(name)} {value / 1000:.1f} ms" for name, value in node.phases_us.items())
    )
    if node.proof:
        render.show_proof(node.proof)
    for warning in node.warnings:
        out.print(f"warning   {terminal.text(warning)}")
    if node.writers:
        out.print(render.writers_table(node.writers))
    if node.filesystems:
        out.print(render.filesystems_table(node.filesystems))


@verb(_show, only_reads=True)
def command(context: Context, checkpoint: Reference) -> Checkpoint:
    """Show everything that is recorded of one checkpoint: its label, its files, and the evidence for the label."""
    return show_checkpoint(context, context.reference(checkpoint))
