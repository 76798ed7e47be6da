"""quiesce group add"""

from __future__ import annotations

from quiesce.cli import terminal
from quiesce.cli.options import GroupName, Members
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.groups import Group
from quiesce.operations.group import add


def _show(group: Group) -> None:
    terminal.out.print(f"changed group [bold]{terminal.text(group.name)}[/]")


@verb(_show)
def command(context: Context, name: GroupName, members: Members) -> Group:
    """Add VMs, or other groups, to a group.

    Example: quiesce group add shop db2:back @mail
    """
    return add(context, name, members)
