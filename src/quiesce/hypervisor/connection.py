"""Connections to libvirt daemons, and the one event loop they share."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import libvirt

from quiesce.model.errors import HypervisorError, NotFoundError

KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 5


@functools.cache
def _start_event_loop() -> None:
    """libvirt's own loop in a thread of its own, started before the first connection; without it no stream moves and no
    keepalive is answered. Not libvirtaio: it is not safe to use together with calls from worker threads."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turns an error of libvirt into ours, saying what was being done. A VM that is gone is a NotFoundError."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise NotFoundError(f"{what}: the VM is gone") from error
        raise HypervisorError(f"{what}: {error.get_error_message() or error}") from error


class Host:
    """One connection. The daemon serves five calls of a connection at a time, so the window gives each VM its own."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        _start_event_loop()
        try:
            self.connection = libvirt.open(uri)
        except libvirt.libvirtError as error:
            raise HypervisorError(
                f"cannot connect to libvirt at {uri}: {error.get_error_message()}",
                hint="is libvirtd (or virtqemud) running, and may you use it? try: virsh -c " + uri + " list",
            ) from error
        with suppress(libvirt.libvirtError):  # a driver without a network in between has none
            self.connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        with translated("asking libvirt for the host's name"):
            self.name = str(self.connection.getHostname())

    def domain(self, name: str) -> libvirt.virDomain:
        """The domain of this name or UUID. Raises NotFoundError."""
        try:
            return self.connection.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise HypervisorError(f"looking up {name}: {error.get_error_message()}") from error
        try:
            return self.connection.lookupByUUIDString(name)
        except libvirt.libvirtError:
            raise NotFoundError(f"no VM named {name!r} on {self.name}", hint="`quiesce vms` lists them") from None

    def domains(self) -> list[libvirt.virDomain]:
        with translated("listing VMs"):
            return sorted(self.connection.listAllDomains(), key=lambda domain: str(domain.name()))

    def emulated_kind(self) -> str:
        """The domain type for a domain that need not run: `kvm` where the host offers it, for it may offer nothing else."""
        with translated("asking what the host can run"):
            capabilities = str(self.connection.getCapabilities())
        return "qemu" if "<domain type='qemu'" in capabilities else "kvm"

    def close(self) -> None:
        with suppress(libvirt.libvirtError):  # the daemon is gone; so is the connection
            self.connection.close()
