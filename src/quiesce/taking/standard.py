"""A standard checkpoint: disks, memory and devices at one instant. A restore resumes the VM as it ran. No application holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from quiesce.catalog.steps import Switch
from quiesce.context import Context
from quiesce.hypervisor.vm import Vm
from quiesce.model.grades import Consistency
from quiesce.model.tree import Kind, MachineFile, Role
from quiesce.storage.port import minding_room, require_room
from quiesce.taking.evidence import Evidence
from quiesce.taking.part import Part

PHASE = "save memory"
_NOTE = (
    "a restore also brings back what the applications remember of other servers: for test and development, not for servers"
    " that others talk to"
)


def take_standard(context: Context, vm: Vm, part: Part) -> Evidence:
    """Saves the VM's memory and switches the VM to the part's overlays at the same instant. The guest runs while most of the
    memory is saved, and is paused for the rest. Raises NoSpaceError, HypervisorError."""
    path, storage = part.new_file(Role.MEMORY), context.storage(vm.host)
    place, needed = storage.place(path), vm.memory_bytes()
    require_room(storage, place, needed, "the memory")
    with part.machine_state(), context.phase(PHASE), _watched(context, vm):
        with minding_room(storage, place, needed, "the memory"), part.journal.step(Switch(part.overlays, path)):
            try:
                vm.switch_with_memory(part.overlays, path)
            finally:
                vm.end_saving()
    return Evidence(
        Consistency.CRASH,
        kind=Kind.STANDARD,
        stall_us=vm.last_downtime_us(),
        warnings=(_NOTE,),
        files=(MachineFile(Role.MEMORY, path),),
    )


@contextmanager
def _watched(context: Context, vm: Vm) -> Iterator[None]:
    """Reports how much of the memory is saved, on a libvirt connection of its own."""
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
