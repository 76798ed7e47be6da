"""One attempt at a checkpoint, of whatever type: its differencing disks and other files, and how they are undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from quiesce.catalog.journal import Journal
from quiesce.catalog.store import Catalog, New
from quiesce.context import Context
from quiesce.disks import images, machine_files
from quiesce.hypervisor.domain_xml import Disk
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError, QuiesceError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.reports import Filesystem, WriterReport
from quiesce.model.tree import Checkpoint, DiskImage, GroupPart, Kind, MachineFile, Role


@dataclass
class Evidence:
    """What the checkpoint is worth, and the evidence."""

    consistency: Consistency
    kind: Kind = Kind.PRODUCTION
    off: bool = False
    stall_us: int = 0
    writers: tuple[WriterReport, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    phases_us: dict[str, int] = field(default_factory=dict)
    guest_clock_ns: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    files: tuple[MachineFile, ...] = ()
    switched_ns: int = 0
    """When the switch returned, by this host's CLOCK_MONOTONIC."""


def record(catalog: Catalog, taken: Sequence[tuple[Part, Checkpoint]]) -> None:
    """The checkpoints, from now on in the catalog: all of them or none, whatever dies when."""
    with ExitStack() as steps:
        new = [attempt.new(node) for attempt, node in taken]
        for attempt, node in taken:
            steps.enter_context(attempt.journal.step("record", checkpoint=node.id))
        catalog.add_together(new)
    for attempt, node in taken:
        attempt.write_manifest(node)


class Part:
    """One attempt and what must be undone if it fails."""

    def __init__(self, context: Context, vm: Vm, disks: tuple[Disk, ...], excluded: tuple[str, ...]) -> None:
        self.created = datetime.now(UTC)
        self.excluded = excluded
        self.overlays: dict[str, str] = {}
        self.untouched: dict[str, str] | None = None
        """Of a VM that is off: when each overlay was last written, as it was made the VM's disk."""
        self.known = True
        """Libvirt is doing nothing of which the outcome is not known."""
        self._context = context
        self._vm = vm
        self._disks = disks
        self._beside = str(disks[0].path)
        self._state: dict[Role, bytes] = {}
        self._warnings: list[str] = []
        self.journal = Journal(context.catalog, vm.host.name, vm.uuid, "checkpoint")
        self.id = self.journal.id

    @property
    def paths(self) -> set[str]:
        """The images the checkpoint will consist of."""
        return {str(disk.path) for disk in self._disks}

    @contextmanager
    def undone_unless_recorded(self) -> Iterator[None]:
        """Unless the block records the checkpoint, no overlay is left, in use or lying about."""
        try:
            yield
        except BaseException:
            self._undo()
            raise
        self.journal.finish("done")

    def make_overlays(self) -> None:
        with self._context.phase("make differencing disks"):
            for disk in self._disks:
                self.overlays[disk.target] = images.make_overlay(
                    self._context,
                    self._vm,
                    self.journal,
                    disk.target,
                    self._vm.capacity(disk.target),
                    str(disk.path),
                    disk.format,
                )

    @contextmanager
    def machine_state(self) -> Iterator[None]:
        """Takes what is no disk: UEFI variables and TPM state. Read before the switch and after it: if both are the same, it is
        what was there at that instant."""
        before = machine_files.read(self._vm)
        yield
        self._state = machine_files.read(self._vm)
        for role in Role:
            if before.get(role) != self._state.get(role):
                names = {Role.NVRAM: "the UEFI variables", Role.TPM: "the TPM's state"}
                self._warnings.append(
                    f"{names.get(role, role.value)} changed while the disks were switched; kept as just after it"
                )

    def new_file(self, role: Role) -> str:
        """Notes a file of the VM that is about to be made, beside its first disk."""
        return images.note_new(self._context, self._vm, self._beside, "machine", role.value)

    def describe(
        self, verdict: Evidence, name: str, required: Consistency, parent: str | None, group: GroupPart | None = None
    ) -> Checkpoint:
        """The checkpoint, to be recorded; what of the machine is no disk is written beside its disks."""
        node = Checkpoint(
            id=self.id,
            host=self._vm.host.name,
            vm_uuid=self._vm.uuid,
            vm_name=self._vm.name,
            name=name,
            created=self.created.isoformat(timespec="milliseconds"),
            kind=verdict.kind,
            consistency=verdict.consistency,
            required=required,
            disks=tuple(DiskImage(disk.target, str(disk.path), disk.format) for disk in self._disks),
            parent=parent,
            off=verdict.off,
            excluded=self.excluded,
            files=verdict.files + self._write_state(),
            stall_us=verdict.stall_us,
            writers=verdict.writers,
            filesystems=verdict.filesystems,
            phases_us=verdict.phases_us,
            guest_clock_ns=verdict.guest_clock_ns,
            warnings=(*verdict.warnings, *self._warnings),
            group=group,
        )
        if self.excluded:
            left_out = f"not in it: disk {', '.join(self.excluded)}, and whatever applications keep there"
            node = replace(node, warnings=(*node.warnings, left_out))
        return node

    def new(self, node: Checkpoint) -> New:
        """What the catalog is to note of it."""
        return New(node, self._vm.definition(), node.id, self.untouched, tuple(self.overlays.values()))

    def write_manifest(self, node: Checkpoint) -> None:
        images.write_manifest(self._context, self._vm, node)

    def _write_state(self) -> tuple[MachineFile, ...]:
        return tuple(
            MachineFile(role, machine_files.keep(self._context, self._vm, self.journal, role, content, self._beside))
            for role, content in self._state.items()
        )

    def _undo(self) -> None:
        """Brings the VM back onto its old images and removes the overlays. What cannot be undone stays journalled."""
        try:
            if self._context.catalog.has(self.id):
                return  # recorded, so the overlays are the VM's disks for good
            if not self.known:
                raise HypervisorError("libvirt has not returned from the switch; its outcome is not known")
            below = {disk.target: str(disk.path) for disk in self._disks}
            overlays = {target: (overlay, below[target]) for target, overlay in self.overlays.items()}
            images.put_back(self._context, self._vm, overlays)
            images.discard_orphans(self._context, self._vm)
            self.journal.finish("undone")
        except QuiesceError as error:
            self._context.emit(Warned(f"the failed attempt could not be undone: {error.message}"))
