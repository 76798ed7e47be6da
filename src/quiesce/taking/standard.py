"""A standard checkpoint: disks, memory and devices at one instant, restored running. No application is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from quiesce.context import Context
from quiesce.hypervisor import volumes
from quiesce.hypervisor.vm import Vm
from quiesce.model.grades import Consistency
from quiesce.model.tree import Kind, MachineFile, Role
from quiesce.taking.part import Evidence, Part

PHASE = "save memory"
_NOTE = (
    "memory is restored as it was, also what applications believe of other servers: for test and development, not for servers"
    " that others talk to"
)


def take(context: Context, vm: Vm, attempt: Part) -> Evidence:
    """Switches the VM to the attempt's overlays with its memory saved. The guest runs on while it is, and stands still for the
    last of it."""
    path = attempt.new_file(Role.MEMORY)
    directory, needed = volumes.split(path)[0], vm.memory_bytes()
    with volumes.directory(vm.host, directory) as pool:
        pool.require_room(needed, "the memory")
    with attempt.machine_state(), context.phase(PHASE), _watched(context, vm):
        with (
            volumes.minding_room(vm.host, directory, needed, "the memory"),
            attempt.journal.step("switch", overlays=attempt.overlays, memory=path),
        ):
            attempt.known = False
            try:
                vm.switch_with_memory(attempt.overlays, path)
            finally:
                vm.end_saving()
                attempt.known = True
    return Evidence(
        Consistency.CRASH,
        kind=Kind.STANDARD,
        stall_us=vm.last_downtime_us(),
        warnings=[_NOTE],
        files=(MachineFile(Role.MEMORY, path),),
    )


@contextmanager
def _watched(context: Context, vm: Vm) -> Iterator[None]:
    """Tells how far the saving is, from a connection of its own."""
    ended = threading.Event()

    def watch() -> None:
        with context.vm(vm.name) as other:
            while not ended.wait(0.25):
                done, total = other.job_progress()
                if total:
                    context.progress(PHASE)(done, total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
