"""quiesce group restore"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import terminal
from quiesce.cli.options import AcceptChanged, AcceptDivergence, PartReference
from quiesce.cli.restore import show_restored
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.group_restore import GroupRestored, group_restore


def _show(result: GroupRestored) -> None:
    for item in result.restored:
        show_restored(item)
    state = "running" if result.started else "off"
    group, name = terminal.text(result.part.group), terminal.text(result.part.name)
    terminal.out.print(f"all members of {group} are restored to [bold]{name}[/] and are {state}")


@verb(_show)
def command(
    context: Context,
    reference: PartReference,
    start: Annotated[
        bool,
        typer.Option("--start", help="Start the members afterwards, back ends first. Without this option they stay off."),
    ] = False,
    discard_current: Annotated[
        bool, typer.Option("--discard-current", help="Do not keep the present states. Then the restore cannot be undone.")
    ] = False,
    accept_divergence: AcceptDivergence = False,
    accept_changed_images: AcceptChanged = False,
) -> GroupRestored:
    """Restore all members of a group to one of its checkpoints.

    If the restore of one member would be refused, no member is touched. With --start, the members of a tier are started when
    the applications of the tier before it answer. If the command was interrupted, run it again: it goes on with the members
    that are left.

    Example: quiesce group restore shop@before-upgrade --start
    """
    return group_restore(
        context,
        reference,
        start=start,
        discard_current=discard_current,
        accept_divergence=accept_divergence,
        accept_changed=accept_changed_images,
    )
