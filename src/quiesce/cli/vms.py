"""quiesce vms"""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from quiesce.cli import session
from quiesce.cli.options import CatalogUrl, Connect, Json
from quiesce.operations.vms import VmSummary, vms


def command(as_json: Json = False, connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """List the VMs of the host, whether their agent is ready, and how many checkpoints they have."""
    session.run(
        vms,
        connect=connect,
        catalog=catalog,
        as_json=as_json,
        to_json=lambda found: [_json(vm) for vm in found],
        show=_show,
    )


def _json(vm: VmSummary) -> dict[str, object]:
    return {"name": vm.name, "uuid": vm.uuid, "state": vm.state.value, "agent": vm.agent, "checkpoints": vm.checkpoints}


def _show(found: list[VmSummary]) -> None:
    table = Table("vm", "state", "agent", "checkpoints", box=None, pad_edge=False, header_style="bold")
    for vm in found:
        table.add_row(escape(vm.name), vm.state.value, vm.agent, str(vm.checkpoints))
    session.out.print(table)
