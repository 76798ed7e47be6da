"""quiesce tree"""

from __future__ import annotations

from rich.tree import Tree as Drawing

from quiesce.cli import render, terminal
from quiesce.cli.options import Vm
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.tree import Tree
from quiesce.operations.tree import tree


def _show(found: Tree, vm: str) -> None:
    drawing = Drawing(f"[bold]{terminal.text(vm)}[/]")
    head = found.visible(found.head_parent)
    ahead: list[tuple[str | None, Drawing]] = [(None, drawing)]
    while ahead:
        parent, branch = ahead.pop()
        ahead += [(node.id, branch.add(render.node_line(node))) for node in found.children(parent)]
        if head == parent:
            branch.add("[cyan]now[/]")
    terminal.out.print(drawing)


@verb(_show, only_reads=True)
def command(context: Context, vm: Vm) -> Tree:
    """Show the checkpoints of a VM as a tree, with their labels.

    Each checkpoint is drawn below the one it is based on, and `now` below the checkpoint that the VM's disks are based on.
    """
    return tree(context, vm)
