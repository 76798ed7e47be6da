"""quiesce group checkpoint"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from quiesce.cli import render, terminal
from quiesce.cli.options import CheckpointName, GroupName, RequireGrade, Window
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.grades import Consistency
from quiesce.operations.checkpoint import DEFAULT_WINDOW_S
from quiesce.operations.group_checkpoint import Taken, group_checkpoint


def _show(taken: Taken) -> None:
    out = terminal.out
    out.print(f"checkpoint [bold]{terminal.text(taken.part.group)}@{terminal.text(taken.part.name)}[/]")
    table = Table("member", "consistency", "writes held", "writers", box=None, pad_edge=False, header_style="bold")
    for node in taken.checkpoints:
        held = f"{node.stall_us / 1000:.0f} ms" if node.stall_us else "-"
        table.add_row(terminal.text(node.vm_name), render.label(node.consistency), held, str(len(node.writers)))
    out.print(table)
    out.print(f"{taken.part.skew_us / 1000:.0f} ms from the first switch to the last")


@verb(_show)
def command(
    context: Context,
    group: GroupName,
    name: CheckpointName = None,
    require: Annotated[
        Consistency | None,
        typer.Option(
            help="The lowest label to accept of each member. If one member cannot have it, the command fails and keeps nothing."
            " \\[default: each VM's setting, or application]"
        ),
    ] = None,
    require_grade: RequireGrade = None,
    window: Window = DEFAULT_WINDOW_S,
) -> Taken:
    """Take a checkpoint of all members of a group at one instant, or of none.

    The front ends in all members hold their writes first, then the back ends. When all members are frozen, all of them switch
    to new overlays, and only then does any member go on. So the members' parts agree with each other: if web1's part has
    a confirmed order, db1's part has the committed order too.

    A member that is off takes part with its disks as the guest left them.

    Example: quiesce group checkpoint shop --name before-upgrade
    """
    return group_checkpoint(context, group, name=name, required=require, required_grade=require_grade, window_s=window)
