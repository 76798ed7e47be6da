"""Lists the VMs of the host, with the state of their agents and the number of their checkpoints."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from quiesce.context import Context
from quiesce.hypervisor.vm import PowerState
from quiesce.model.errors import NotFoundError
from quiesce.model.names import HELPER_PREFIX
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


def vms(context: Context) -> list[VmSummary]:
    with context.host() as host:
        names = [name for domain in host.domains() if not (name := str(domain.name())).startswith(HELPER_PREFIX)]
        counts = context.catalog.checkpoints.counts(host.id)
    found = []
    for name in names:
        with suppress(NotFoundError):  # it was undefined meanwhile
            found.append(_summary(context, name, counts))
    return found


def _summary(context: Context, name: str, counts: dict[str, int]) -> VmSummary:
    with context.vm(name) as vm:
        facts = vm.facts()
    port = facts.channels.get(PORT_NAME)
    if port is None:
        agent = "none"
    elif facts.power is not PowerState.RUNNING:
        agent = "unknown"
    else:
        agent = "ready" if port.connected else "not running"
    return VmSummary(facts.name, facts.uuid, facts.power, agent, counts.get(facts.uuid, 0))
