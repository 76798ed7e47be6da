"""quiesce group forget"""

from __future__ import annotations

from quiesce.cli import terminal
from quiesce.cli.options import GroupName
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.groups import Group
from quiesce.operations.group import forget


def _show(group: Group) -> None:
    terminal.out.print(f"forgot group [bold]{terminal.text(group.name)}[/]")


@verb(_show)
def command(context: Context, name: GroupName) -> Group:
    """Forget a group. Its VMs and all checkpoints stay as they are."""
    return forget(context, name)
