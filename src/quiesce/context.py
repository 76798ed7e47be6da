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
from quiesce.hypervisor.events import LifecycleEvents
from quiesce.hypervisor.glances import Glance, glances
from quiesce.hypervisor.vm import Facts, Vm
from quiesce.model.errors import CancelledError, UsageError
from quiesce.model.events import Emit, PhaseFinished, PhaseStarted, Progress
from quiesce.model.keys import VmKey
from quiesce.model.names import CheckpointReference, parse_reference
from quiesce.storage.files import FileStorage
from quiesce.storage.local import LocalStorage
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

    def glances(self, host: Host) -> list[Glance]:
        """All VMs of the host. Raises HypervisorError."""
        return glances(host)

    def power_changes(self) -> LifecycleEvents:
        """The events of the host's VMs, from now on. To be closed. Raises HypervisorError."""
        return LifecycleEvents(self.uri, self.catalog.hosts.identify)

    @contextmanager
    def vm(self, name: str, host: Host | None = None) -> Iterator[Vm]:
        """The VM on this connection, or on one of its own. Raises NotFoundError, HypervisorError."""
        vm = Vm(self.uri, name, self.catalog.hosts.identify, shared=host)
        try:
            yield vm
        finally:
            vm.close()

    def reference(self, text: str) -> CheckpointReference:
        """The checkpoint that a user means by `VM@CHECKPOINT`. With more than one @, this is the checkpoint that there is, or
        else one of the VM with the longest name; if there is no such VM, the first @ divides. Raises UsageError, also if two
        VMs have such a checkpoint."""
        possible = parse_reference(text)
        if len(possible) == 1:
            return possible[0]
        with self.host() as host:
            longest_first = [each for each in reversed(possible) if host.has(each.vm)]
            there = [each for each in longest_first if self._is_there(host, each)]
        if len(there) > 1:
            meant = ", or ".join(f"{each.checkpoint!r} of the VM {each.vm!r}" for each in there)
            raise UsageError(
                f"{text!r} may be {meant}", hint="write the UUID of the VM instead of its name; virsh domuuid shows it"
            )
        return next(iter(there or longest_first), possible[0])

    def _is_there(self, host: Host, reference: CheckpointReference) -> bool:
        tree, _ = self.catalog.checkpoints.readable(VmKey(host.id, host.uuid_of(reference.vm)))
        return any(reference.checkpoint in (node.name, node.id) for node in tree.checkpoints)

    def storage(self, host: Host) -> Storage:
        """The storage of the images of the host's VMs."""
        return LocalStorage(host) if host.direct else FileStorage(host)

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
