"""quiesce checkpoint"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from quiesce.cli import render, session
from quiesce.cli.options import CatalogUrl, Connect, Json, Vm
from quiesce.model.grades import Consistency
from quiesce.model.settings import Type
from quiesce.model.tree import Checkpoint
from quiesce.operations.checkpoint import DEFAULT_WINDOW_S, checkpoint


def command(
    vm: Vm,
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", metavar="NAME", help="At most 100 characters. \\[default: the time, UTC]"),
    ] = None,
    type: Annotated[
        Type | None,
        typer.Option(
            help="production asks the guest's applications; standard saves memory instead. \\[default: as set for the VM]"
        ),
    ] = None,
    require: Annotated[
        Consistency | None,
        typer.Option(
            help="The least consistency to accept, else nothing is kept. \\[default: as set for the VM, or application]"
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="DISK", help="Leave a disk out, as vdb. Can be given several times.")
    ] = None,
    window: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.5, max=60, help="Longest time writes may be held; the guest itself enforces it."),
    ] = DEFAULT_WINDOW_S,
    as_json: Json = False,
    connect: Connect = None,
    catalog: CatalogUrl = None,
) -> None:
    """Take a checkpoint of a VM.

    The applications in the guest are brought to rest at a boundary of their own, the filesystems are frozen, all disks switch
    to differencing disks at once, and everything goes on: in well under a second, as a rule. The result says what the
    checkpoint is worth, and why. Of a VM that is off, it is what the guest left.

    A standard checkpoint (--type standard) has the memory in it and is restored running. It asks no application, and is not for
    servers that others talk to.
    """
    session.run(
        lambda context: checkpoint(
            context, vm, name=name, type=type, required=require, exclude=tuple(exclude or ()), window_s=window
        ),
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=render.checkpoint_json,
        show=_show,
    )


def _show(node: Checkpoint) -> None:
    out = session.out
    out.print(f"checkpoint [bold]{escape(node.vm_name)}@{escape(node.name)}[/]")
    stall = f", writes held for at most {node.stall_us / 1000:.0f} ms" if node.stall_us else ""
    out.print(f"consistency {render.label(node.consistency)}{stall}")
    if node.writers:
        out.print(render.writers_table(node.writers))
