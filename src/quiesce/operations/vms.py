"""Lists the VMs of the host, with the state of their agents and the number of their checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from quiesce.context import Context
from quiesce.hypervisor.glances import Glance
from quiesce.hypervisor.vm import PowerState
from quiesce.model.names import HELPER_PREFIX, TRIAL_PREFIX
from quiesce.wire.messages import PORT_NAME


@dataclass(frozen=True)
class VmSummary:
    name: str
    uuid: str
    state: PowerState
    agent: str
    """`ready`, `not running` (the VM has the agent's port, but nothing in the guest listens), `none`, or `unknown` (the VM does
    not run)."""
    checkpoints: int
    problem: str | None = None
    """Why libvirt could not tell the VM's state, for example because the VM was just being stopped. `state` is then OTHER."""


def vms(context: Context) -> list[VmSummary]:
    """A VM whose state cannot be read has a row that says so; one that was undefined meanwhile has none. Raises HypervisorError
    if the host cannot be asked."""
    with context.host() as host:
        counts = context.catalog.checkpoints.counts(host.id)
        return [
            VmSummary(vm.name, vm.uuid, vm.power, _agent(vm), counts.get(vm.uuid, 0), vm.problem)
            for vm in context.glances(host)
            if not vm.name.startswith((HELPER_PREFIX, TRIAL_PREFIX))
        ]


def _agent(vm: Glance) -> str:
    port = vm.channels.get(PORT_NAME)
    if port is None:
        return "unknown" if vm.problem else "none"
    if vm.power is not PowerState.RUNNING:
        return "unknown"
    return "ready" if port.connected else "not running"
