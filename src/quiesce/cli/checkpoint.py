"""quiesce checkpoint"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import render, terminal
from quiesce.cli.options import CheckpointName, Overlays, RequireGrade, Vm, Window
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.grades import Consistency
from quiesce.model.settings import Type
from quiesce.model.tree import Checkpoint
from quiesce.operations.checkpoint import DEFAULT_WINDOW_S, checkpoint


def _show(node: Checkpoint) -> None:
    out = terminal.out
    out.print(f"checkpoint [bold]{terminal.text(node.vm_name)}@{terminal.text(node.name)}[/]")
    stall = f", writes held for at most {node.stall_us / 1000:.0f} ms" if node.stall_us else ""
    out.print(f"consistency {render.label(node.consistency)}{stall}")
    if node.writers:
        out.print(render.writers_table(node.writers))


@verb(_show)
def command(
    context: Context,
    vm: Vm,
    name: CheckpointName = None,
    type: Annotated[
        Type | None,
        typer.Option(
            help="production: the guest's applications hold their writes. standard: the memory is saved instead. \\[default:"
            " the VM's setting]"
        ),
    ] = None,
    require: Annotated[
        Consistency | None,
        typer.Option(
            help="The lowest label to accept. If it cannot be had, the command fails and keeps nothing. \\[default: the VM's"
            " setting, or application]"
        ),
    ] = None,
    require_grade: RequireGrade = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="DISK", help="Leave this disk out, for example vdb. Can be given several times."),
    ] = None,
    overlays: Overlays = None,
    window: Window = DEFAULT_WINDOW_S,
    digest: Annotated[
        bool,
        typer.Option(
            "--digest",
            help="Afterwards, while the guest runs, read all images of the checkpoint and record digests of their bytes, as"
            " `quiesce verify` does.",
        ),
    ] = False,
) -> Checkpoint:
    """Take a checkpoint of a VM that is running or off.

    In a running guest, the applications hold their writes, the filesystems are frozen, all disks switch to new overlays at the
    same moment, and the guest goes on. Writes usually wait well under a second. The result is a label (application, filesystem
    or crash) and the evidence for it. A checkpoint of a VM that is off contains the disks as the guest left them.

    A standard checkpoint (--type standard) also contains the memory, and a restore resumes the guest from it. The applications
    do not hold their writes, so do not use it for a server that other servers talk to.

    Example: quiesce checkpoint db1 --name before-upgrade
    """
    return checkpoint(
        context,
        vm,
        name=name,
        type=type,
        required=require,
        required_grade=require_grade,
        exclude=tuple(exclude or ()),
        overlays=overlays,
        window_s=window,
        digest=digest,
    )
