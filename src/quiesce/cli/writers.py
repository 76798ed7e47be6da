"""quiesce writers"""

from __future__ import annotations

from quiesce.cli import render, terminal
from quiesce.cli.options import Vm
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.writers import GuestReport, writers


def _show(report: GuestReport) -> None:
    terminal.out.print(f"a checkpoint now would be {render.label(report.expected)}-consistent")
    if report.writers:
        terminal.out.print(render.writers_table(report.writers))
    terminal.out.print(render.filesystems_table(report.filesystems))


@verb(_show)
def command(context: Context, vm: Vm) -> GuestReport:
    """Show the applications and filesystems of a running guest, and the label a checkpoint would get now.

    The command changes nothing. For an application that cannot be held it shows the reason.
    """
    return writers(context, vm)
