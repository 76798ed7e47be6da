"""quiesce vms"""

from __future__ import annotations

from rich.table import Table

from quiesce.cli import terminal
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.vms import VmSummary, vms


def _show(found: list[VmSummary]) -> None:
    table = Table("vm", "state", "agent", "checkpoints", box=None, pad_edge=False, header_style="bold")
    for vm in found:
        table.add_row(terminal.text(vm.name), vm.state.value, terminal.text(vm.agent), str(vm.checkpoints))
    terminal.out.print(table)


@verb(_show)
def command(context: Context) -> list[VmSummary]:
    """List the VMs of the host, the state of their guest agents, and how many checkpoints they have."""
    return vms(context)
