"""What every operation needs: libvirt hosts and VMs, the catalog, locks, and a listener for its events."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from quiesce.catalog import lock
from quiesce.catalog.store import Catalog
from quiesce.guests import linux, vss
from quiesce.guests.port import Guest
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.vm import Facts, Vm
from quiesce.model.errors import CancelledError
from quiesce.model.events import Emit, PhaseFinished, PhaseStarted, Progress
from quiesce.model.keys import VmKey
from quiesce.storage.files import FileStorage
from quiesce.storage.port import Storage

DEFAULT_URI = "qemu:///system"


def default_uri() -> str:
    return os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Context:
    """The libvirt connection URI, the catalog, and the listener for events."""

    uri: str
    catalog: Catalog
    emit: Emit
    cancelled: Callable[[], bool] = _never
    """Whether the user cancelled the operation. Long work (merges, copies) asks this again and again, and stops at a point from
    which it can go on later."""

    @contextmanager
    def host(self) -> Iterator[Host]:
        """A connection to the host. Raises HypervisorError."""
        host = Host(self.uri, self.catalog.hosts.identify)
        try:
            yield host
        finally:
            host.close()

    @contextmanager
    def vm(self, name: str) -> Iterator[Vm]:
        """The VM on a connection of its own. Raises NotFoundError, HypervisorError."""
        vm = Vm(self.uri, name, self.catalog.hosts.identify)
        try:
            yield vm
        finally:
            vm.close()

    def storage(self, host: Host) -> Storage:
        """The storage of the images of the host's VMs."""
        return FileStorage(host)

    def guest(self, vm: Vm, facts: Facts) -> AbstractContextManager[Guest]:
        """A conversation with the VM's guest: through VSS in a Windows guest, otherwise through our agent. The end of the
        conversation releases all that is held. Raises AgentError if nothing answers."""
        if vss.is_windows(vm, facts):
            return vss.windows_guest(vm)
        linux.require_agent_port(facts)
        return linux.linux_guest(vm)

    @contextmanager
    def locked(self, vm: Vm, verb: str) -> Iterator[None]:
        """Locks the VM: one operation at a time works on it. The kernel frees the lock when this process dies. Raises
        BusyError, naming the holder."""
        with self.locked_key(vm.key, f"quiesce {verb} {vm.name}"):
            yield

    @contextmanager
    def locked_key(self, key: VmKey, what: str) -> Iterator[None]:
        """Like `locked`, for a VM that libvirt may not know. `what` describes this process to others."""
        with lock.hold(self.catalog.lock_directory(), f"{key.host}-{key.uuid}", what):
            yield

    @contextmanager
    def locked_directory(self, host: str, path: str, what: str) -> Iterator[None]:
        """Locks a directory: one export or import at a time writes to it. `host`: the host's id in the catalog."""
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
        """A function to be called with (bytes done, bytes in all). It raises CancelledError if the operation was cancelled."""

        def report(done: int, total: int) -> None:
            if self.cancelled():
                raise CancelledError(
                    f"{phase}: cancelled", hint="the next deletion, or `quiesce doctor --repair`, goes on with a merge"
                )
            self.emit(Progress(phase, done, total))

        return report
