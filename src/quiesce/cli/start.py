"""quiesce start"""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json, Vm
from quiesce.operations.start import Started, start


def command(vm: Vm, as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Start a VM. If it is set to automatic checkpoints and has none, one is taken before its guest runs."""
    session.run(
        lambda context: start(context, vm),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=_json,
        show=_show,
    )


def _json(result: Started) -> dict[str, Any]:
    return {"vm": result.vm, "checkpoint": render.checkpoint_json(result.checkpoint) if result.checkpoint else None}


def _show(result: Started) -> None:
    if node := result.checkpoint:
        name = f"{escape(node.vm_name)}@{escape(node.name)}"
        session.out.print(f"checkpoint [bold]{name}[/] ({render.label(node.consistency)})")
    session.out.print(f"{escape(result.vm)} is running")
