"""Lists the VMs of the host, with the state of their agents and the number of their checkpoints."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from quiesce.context import Context
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.vm import PowerState
from quiesce.model.errors import HypervisorError, NotFoundError
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
        here = {str(domain.UUIDString()): str(domain.name()) for domain in host.domains()}
        counts = context.catalog.checkpoints.counts(host.id)
        found = []
        for uuid, name in here.items():
            if name.startswith((HELPER_PREFIX, TRIAL_PREFIX)):
                continue
            with suppress(NotFoundError):
                try:
                    found.append(_summary(context, host, uuid, counts.get(uuid, 0)))
                except HypervisorError as error:
                    found.append(VmSummary(name, uuid, PowerState.OTHER, "unknown", counts.get(uuid, 0), error.message))
    return found


def _summary(context: Context, host: Host, uuid: str, checkpoints: int) -> VmSummary:
    with context.vm(uuid, host) as vm:
        seen = vm.glance()
        port = seen.channels.get(PORT_NAME)
        if port is None:
            agent = "none"
        elif seen.power is not PowerState.RUNNING:
            agent = "unknown"
        else:
            agent = "ready" if port.connected else "not running"
        return VmSummary(vm.name, vm.uuid, seen.power, agent, checkpoints)
