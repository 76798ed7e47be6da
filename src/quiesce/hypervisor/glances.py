"""What a list of VMs shows of each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import libvirt

from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import Host, translated
from quiesce.hypervisor.vm import PowerState, power_state, settled
from quiesce.model.errors import HypervisorError, NotFoundError


@dataclass(frozen=True)
class Glance:
    name: str
    uuid: str
    power: PowerState
    channels: Mapping[str, domain_xml.Channel] = field(default_factory=dict)
    problem: str | None = None
    """Why libvirt could not tell more."""


def glances(host: Host) -> list[Glance]:
    """All VMs, in the order of their names. No disk is looked at, so no storage is asked. A VM that was undefined meanwhile is
    left out. Raises HypervisorError if the host cannot be asked."""
    with translated("listing VMs"):  # one question for all of them
        answers = host.connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
    found = []
    for domain, answer in answers:
        with suppress(NotFoundError):
            found.append(_glance(domain, answer))
    return sorted(found, key=lambda each: each.name)


def _glance(domain: Any, answer: Mapping[str, Any]) -> Glance:
    name, uuid = str(domain.name()), str(domain.UUIDString())

    def ask() -> Glance:
        power = power_state(domain, answer.get("state.state"))
        return Glance(name, uuid, power, domain_xml.channels(domain.XMLDesc(0)))

    try:
        return settled(name, ask)
    except HypervisorError as error:
        return Glance(name, uuid, PowerState.OTHER, problem=error.message)
