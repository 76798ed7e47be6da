"""quiesce tree"""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.tree import Tree as Drawing

from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json, Vm
from quiesce.model.tree import Tree
from quiesce.operations.tree import tree


def command(vm: Vm, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Show the checkpoints of a VM and where it stands now."""

    def show(found: Tree) -> None:
        drawing = Drawing(f"[bold]{escape(vm)}[/]")
        _draw(found, None, drawing)
        session.out.print(drawing)

    session.run(lambda context: tree(context, vm), connect=connect, catalog=catalog, as_json=as_json, to_json=_json, show=show)


def _draw(found: Tree, parent: str | None, drawing: Drawing) -> None:
    for node in found.children(parent):
        _draw(found, node.id, drawing.add(render.node_line(node)))
    if found.visible(found.head_parent) == parent:
        drawing.add("[cyan]now[/]")


def _json(found: Tree) -> dict[str, Any]:
    return {
        "head_parent": found.visible(found.head_parent),
        "checkpoints": [render.checkpoint_json(node) for node in found.checkpoints],
    }
