"""What every operation needs."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from quiesce.catalog import lock
from quiesce.catalog.store import Catalog
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.vm import Vm
from quiesce.model.events import Emit, PhaseFinished, PhaseStarted, Progress

DEFAULT_URI = "qemu:///system"


def default_uri() -> str:
    return os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI


@dataclass(frozen=True)
class Context:
    """Where the VMs are, where the checkpoints are recorded, and who listens."""

    uri: str
    catalog: Catalog
    emit: Emit

    @contextmanager
    def host(self) -> Iterator[Host]:
        """A connection that is no VM's. Raises HypervisorError."""
        host = Host(self.uri)
        try:
            yield host
        finally:
            host.close()

    @contextmanager
    def vm(self, name: str) -> Iterator[Vm]:
        """The VM on a connection of its own. Raises NotFoundError, HypervisorError."""
        vm = Vm(self.uri, name)
        try:
            yield vm
        finally:
            vm.close()

    @contextmanager
    def locked(self, vm: Vm, verb: str) -> Iterator[None]:
        """One operation a VM at a time. The lock dies with its holder. Raises BusyError, naming the holder."""
        with self.locked_uuid(vm.host.name, vm.uuid, f"quiesce {verb} {vm.name}"):
            yield

    @contextmanager
    def locked_uuid(self, host: str, vm_uuid: str, what: str) -> Iterator[None]:
        """The same for a VM that libvirt need not know."""
        with lock.hold(self.catalog.lock_directory(), f"{host}-{vm_uuid}", what):
            yield

    @contextmanager
    def locked_directory(self, host: str, path: str, what: str) -> Iterator[None]:
        """One export or import at a time writes to a directory."""
        key = hashlib.sha256(path.encode()).hexdigest()[:16]
        with lock.hold(self.catalog.lock_directory(), f"{host}-directory-{key}", f"{what} {path}"):
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.emit(PhaseStarted(name))
        started = time.monotonic()
        yield
        self.emit(PhaseFinished(name, time.monotonic() - started))

    def progress(self, phase: str) -> Callable[[int, int], None]:
        """To be called with bytes done and bytes in all."""
        return lambda done, total: self.emit(Progress(phase, done, total))
