"""libvirt's events: which VMs of a host start and shut down."""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import libvirt

from quiesce.hypervisor.connection import Host, by_uuid, translated
from quiesce.model.errors import HypervisorError
from quiesce.model.keys import HostIdentity
from quiesce.model.names import HELPER_PREFIX


class PowerChange(Enum):
    STARTED = "started"
    """The VM booted. A VM that resumes from saved memory or was migrated to this host does not count."""
    SHUT_DOWN = "shut down"
    """The guest powered the VM off. A VM that was destroyed does not count."""


@dataclass(frozen=True)
class Lifecycle:
    uuid: str
    name: str
    change: PowerChange
    at: datetime
    """When this process received the event, UTC."""


_CHANGES = {
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED): PowerChange.STARTED,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN): PowerChange.SHUT_DOWN,
}


class LifecycleEvents:
    """Listens on a libvirt connection of its own, which `close` ends. Raises HypervisorError if libvirt cannot be reached."""

    def __init__(self, uri: str, register: Callable[[HostIdentity], str] = by_uuid) -> None:
        self._host = Host(uri, register)
        self._received: queue.SimpleQueue[Lifecycle | None] = queue.SimpleQueue()
        self._registered: int | None = None
        try:
            with translated("listening to libvirt's events"):
                connection = self._host.connection
                connection.registerCloseCallback(self._on_close, None)
                self._registered = connection.domainEventRegisterAny(
                    None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_event, None
                )
        except HypervisorError:
            self.close()
            raise

    @property
    def host_id(self) -> str:
        return self._host.id

    @property
    def host_name(self) -> str:
        return self._host.name

    def present(self) -> list[Lifecycle]:
        """Events for changes before this process listened, made from the present states of the VMs: each VM that is on was
        started, and each VM that is off was shut down if libvirt remembers that its guest did it. libvirt forgets that when its
        daemon restarts."""
        found = []
        for domain in self._host.domains():
            with suppress(libvirt.libvirtError):  # it was undefined meanwhile
                state, reason = domain.state()
                if domain.isActive():
                    found.append((domain, PowerChange.STARTED))
                elif (state, reason) == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN):
                    found.append((domain, PowerChange.SHUT_DOWN))
        return [event for domain, change in found if (event := _lifecycle(domain, change))]

    def next(self, timeout: float) -> Lifecycle | None:
        """The next event, or None if there was none for `timeout` seconds. Raises HypervisorError when the connection is lost:
        from then on events are missed."""
        try:
            event = self._received.get(timeout=timeout)
        except queue.Empty:
            return None
        if event is None:
            self._received.put(None)
            raise HypervisorError("the connection to libvirt was lost", hint="is libvirtd (or virtqemud) running?")
        return event

    def close(self) -> None:
        # Each callback would keep the connection open. The calls fail if the daemon is gone.
        if self._registered is not None:
            with suppress(libvirt.libvirtError):
                self._host.connection.domainEventDeregisterAny(self._registered)
        with suppress(libvirt.libvirtError):
            self._host.connection.unregisterCloseCallback()
        self._host.close()

    def _on_close(self, _connection: libvirt.virConnect, _reason: int, _opaque: Any) -> None:
        """In libvirt's event thread."""
        self._received.put(None)

    def _on_event(
        self, _connection: libvirt.virConnect, domain: libvirt.virDomain, event: int, detail: int, _opaque: Any
    ) -> None:
        """In libvirt's event thread."""
        change = _CHANGES.get((event, detail))
        found = _lifecycle(domain, change) if change else None
        if found:
            self._received.put(found)


def _lifecycle(domain: libvirt.virDomain, change: PowerChange) -> Lifecycle | None:
    """The event; None for helper domains. Does not ask libvirt: a domain object knows its name and UUID."""
    name = str(domain.name())
    if name.startswith(HELPER_PREFIX):
        return None
    return Lifecycle(str(domain.UUIDString()), name, change, datetime.now(UTC))
