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
        state = "not known" if vm.problem else vm.state.value
        table.add_row(terminal.text(vm.name), state, terminal.text(vm.agent), str(vm.checkpoints))
    terminal.out.print(table)
    for vm in found:
        if vm.problem:
            terminal.out.print(f"[yellow]{terminal.text(vm.name)}: {terminal.text(vm.problem)}[/]")


@verb(_show, only_reads=True)
def command(context: Context) -> list[VmSummary]:
    """List the VMs of the host, the state of their guest agents, and how many checkpoints they have."""
    return vms(context)
