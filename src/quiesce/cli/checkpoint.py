"""quiesce checkpoint"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json, Vm
from quiesce.model.grades import Consistency
from quiesce.model.tree import Checkpoint
from quiesce.operations.checkpoint import DEFAULT_WINDOW_S, checkpoint


def command(
    vm: Vm,
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", metavar="NAME", help="At most 100 characters. [default: the time, UTC]"),
    ] = None,
    require: Annotated[
        Consistency, typer.Option(help="The least consistency to accept; if it cannot be had, nothing is kept.")
    ] = Consistency.APPLICATION,
    window: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.5, max=60, help="Longest time writes may be held; the guest itself enforces it."),
    ] = DEFAULT_WINDOW_S,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Take a production checkpoint of a running VM.

    The applications in the guest are brought to rest at a boundary of their own, the filesystems are frozen, all disks switch
    to differencing disks at once, and everything goes on: in well under a second, as a rule. The result says what the
    checkpoint is worth, and why.
    """
    session.run(
        lambda context: checkpoint(context, vm, name=name, required=require, window_s=window),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=render.checkpoint_json,
        show=_show,
    )


def _show(node: Checkpoint) -> None:
    out = session.out
    out.print(f"checkpoint [bold]{escape(node.vm_name)}@{escape(node.name)}[/]")
    stall = f"{node.stall_us / 1000:.0f} ms" if node.stall_us else "not measured"
    out.print(f"consistency {render.label(node.consistency)}, writes held for at most {stall}")
    if node.writers:
        out.print(render.writers_table(node.writers))
