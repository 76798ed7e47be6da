"""quiesce tree"""

from __future__ import annotations

from rich.markup import escape
from rich.tree import Tree as Drawing

from quiesce.cli import render, terminal
from quiesce.cli.options import Vm
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.tree import Tree
from quiesce.operations.tree import tree


def _show(found: Tree, vm: str) -> None:
    drawing = Drawing(f"[bold]{escape(vm)}[/]")
    _draw(found, None, drawing)
    terminal.out.print(drawing)


def _draw(found: Tree, parent: str | None, drawing: Drawing) -> None:
    for node in found.children(parent):
        _draw(found, node.id, drawing.add(render.node_line(node)))
    if found.visible(found.head_parent) == parent:
        drawing.add("[cyan]now[/]")


@verb(_show)
def command(context: Context, vm: Vm) -> Tree:
    """Show the checkpoints of a VM as a tree, with their labels.

    Each checkpoint is drawn below the one it is based on, and `now` below the checkpoint that the VM's disks are based on.
    """
    return tree(context, vm)
