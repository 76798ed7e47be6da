"""quiesce doctor"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import terminal
from quiesce.cli.options import OptionalVm
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.doctor import Diagnosis, doctor


def _show(found: list[Diagnosis]) -> None:
    for item in found:
        lines = [*item.found, *item.mended]
        if not lines:
            terminal.out.print(f"{terminal.text(item.vm)}: nothing is wrong")
        for line in item.found:
            terminal.out.print(f"{terminal.text(item.vm)}: [yellow]{terminal.text(line)}[/]")
        for line in item.mended:
            terminal.out.print(f"{terminal.text(item.vm)}: [green]{terminal.text(line)}[/]")


@verb(_show)
def command(
    context: Context,
    vm: OptionalVm = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what is found. Without this option nothing is changed.")
    ] = False,
) -> list[Diagnosis]:
    """Find what is wrong with the checkpoints of a VM, or of all VMs. With --repair, mend it.

    The command finds interrupted operations, files that nothing needs, missing files, backing chains that somebody changed with
    virsh, deleted checkpoints that can be merged now, outdated manifests, and VMs that were renamed, undefined or defined anew.
    A repair gives up only checkpoints that cannot be restored any more.

    Example: quiesce doctor db1 --repair
    """
    return doctor(context, vm, repair=repair)
