"""quiesce group show"""

from __future__ import annotations

from rich.table import Table

from quiesce.cli import terminal
from quiesce.cli.options import GroupName
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.group import Shown, show_group


def _show(item: Shown) -> None:
    table = Table("member", "tier", "uuid", box=None, pad_edge=False, header_style="bold")
    for member in item.members:
        table.add_row(terminal.text(member.vm_name), member.tier.value, terminal.text(member.vm_uuid))
    terminal.out.print(table)
    for part in item.checkpoints:
        terminal.out.print(f"checkpoint [bold]{terminal.text(part.group)}@{terminal.text(part.name)}[/]")


@verb(_show, only_reads=True)
def command(context: Context, name: GroupName) -> Shown:
    """Show the members of a group, including the members of groups in it, and the group's checkpoints."""
    return show_group(context, name)
