"""quiesce group create"""

from __future__ import annotations

from quiesce.cli import terminal
from quiesce.cli.options import GroupName, Members
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.groups import Group
from quiesce.operations.group import create


def _show(group: Group) -> None:
    terminal.out.print(f"created group [bold]{terminal.text(group.name)}[/]")


@verb(_show)
def command(context: Context, name: GroupName, members: Members) -> Group:
    """Make a group of VMs.

    A member is a VM with its tier: front, middle or back (middle if left out). The tier says in which order `quiesce group
    restore` starts the VMs: back ends first. It does not say in which order applications hold their writes; that follows from
    the applications. A VM of tier external is neither checkpointed nor restored with the group: it is only asked whether it
    would disagree.

    Example: quiesce group create shop web1:front db1:back
    """
    return create(context, name, members)
