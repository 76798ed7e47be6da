"""quiesce group remove"""

from __future__ import annotations

from quiesce.cli import terminal
from quiesce.cli.options import GroupName, Members
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.groups import Group
from quiesce.operations.group import remove


def _show(group: Group) -> None:
    terminal.out.print(f"changed group [bold]{terminal.text(group.name)}[/]")


@verb(_show)
def command(context: Context, name: GroupName, members: Members) -> Group:
    """Remove VMs, or other groups, from a group. Their checkpoints stay as they are.

    Example: quiesce group remove shop db2 @mail
    """
    return remove(context, name, members)
