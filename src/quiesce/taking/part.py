"""One VM's part of a checkpoint while the checkpoint is taken, alone or with other VMs: its overlays and other files, and its
record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from quiesce.catalog.checkpoints import New
from quiesce.catalog.journal import Journal
from quiesce.catalog.steps import Record
from quiesce.context import Context
from quiesce.disks import fingerprints, images, machine_files
from quiesce.hypervisor.vm import Vm
from quiesce.model.fingerprints import lowered
from quiesce.model.tree import Checkpoint, DiskImage, GroupPart, MachineFile, Role
from quiesce.taking.evidence import Evidence
from quiesce.taking.plan import Plan


class Part:
    """To be used under the VM's lock. If the checkpoint fails, `recover` of operations/checkpoint.py undoes what the part did,
    from the part's journal."""

    def __init__(self, context: Context, vm: Vm, plan: Plan, journal: Journal) -> None:
        self.plan = plan
        self.journal = journal
        self.overlays: dict[str, str] = {}
        """Path of each overlay, by target; empty until they are made."""
        self.id = journal.id
        """The id of the operation, and of the checkpoint."""
        self._created = datetime.now(UTC)
        self._context = context
        self._vm = vm
        self._place = plan.places[plan.disks[0].target]
        self._sizes: dict[str, int] = {}
        """Virtual size of each disk, in bytes, by target."""
        self._state: dict[Role, bytes] = {}
        self._warnings: list[str] = []

    def make_overlays(self) -> None:
        with self._context.phase("make overlays"):
            storage = self._context.storage(self._vm.host)
            for disk in self.plan.disks:
                size = self._sizes[disk.target] = self._vm.capacity(disk.target)
                path = images.new_path(storage, self._vm.name, self.plan.places[disk.target], disk.target, "qcow2")
                self.overlays[disk.target] = images.make_overlay(
                    self._context, self._vm, self.journal, disk.target, size, str(disk.path), disk.format, path
                )

    @contextmanager
    def machine_state(self) -> Iterator[None]:
        """Takes the UEFI variables and the TPM's state; the block is the switch. Reads them before and after the switch: if
        they are equal, they were the same at the instant of the switch. If not, keeps the later ones and warns."""
        before = machine_files.read(self._context, self._vm)
        yield
        self._state = machine_files.read(self._context, self._vm)
        self._warnings += machine_files.left_out(self._vm, self._state)
        names = {Role.NVRAM: "the UEFI variables", Role.TPM: "the TPM's state"}
        for role in Role:
            if before.get(role) != self._state.get(role):
                self._warnings.append(
                    f"{names.get(role, role.value)} changed during the switch; the checkpoint has the state after the switch"
                )

    def new_file(self, role: Role) -> str:
        """A new path beside the first overlay, recorded in the catalog. The caller makes the file next."""
        return images.note_new(self._context, self._vm, self._place, "machine", role.value)

    def checkpoint(self, evidence: Evidence, group: GroupPart | None = None) -> Checkpoint:
        """The checkpoint that is to be recorded. Writes the UEFI variables and the TPM's state beside the first overlay."""
        warnings = [*evidence.warnings, *self._warnings, *self.plan.facts.outside]
        if self.plan.excluded:
            warnings.append(f"disk {', '.join(self.plan.excluded)} is left out, with all that applications keep there")
        node = Checkpoint(
            id=self.id,
            host=self._vm.key.host,
            vm_uuid=self._vm.uuid,
            vm_name=self._vm.name,
            name=self.plan.name,
            created=self._created.isoformat(timespec="milliseconds"),
            kind=evidence.kind,
            consistency=evidence.consistency,
            required=self.plan.settings.require,
            disks=tuple(
                DiskImage(disk.target, str(disk.path), disk.format, self._sizes[disk.target]) for disk in self.plan.disks
            ),
            parent=self.plan.parent,
            off=evidence.off,
            excluded=self.plan.excluded,
            place=self._place,
            files=evidence.files + self._write_state(),
            stall_us=evidence.stall_us,
            writers=evidence.writers,
            filesystems=evidence.filesystems,
            phases_us=evidence.phases_us,
            guest_clock_ns=evidence.guest_clock_ns,
            warnings=tuple(warnings),
            group=group,
        )
        return lowered(node, self.plan.changed)

    def new(self, node: Checkpoint, evidence: Evidence) -> New:
        """The record for the catalog."""
        prints = evidence.fingerprints
        if prints is None:
            prints = fingerprints.of_new_checkpoint(self._context, self._vm, self.plan.images)
        return New(node, self._vm.definition(), node.id, evidence.untouched, tuple(self.overlays.values()), prints)

    def earlier(self, new: New) -> list[Checkpoint]:
        """Earlier checkpoints whose images have a fingerprint only now, as those of an older quiesce."""
        return fingerprints.owners(self._context, self._vm, new.fingerprints.keys() - self.plan.images)

    def write_manifest(self, node: Checkpoint) -> None:
        images.write_manifest(self._context, self._vm, node)

    def _write_state(self) -> tuple[MachineFile, ...]:
        return tuple(
            MachineFile(role, machine_files.keep(self._context, self._vm, self.journal, role, content, self._place))
            for role, content in self._state.items()
        )


def record(context: Context, taken: Sequence[tuple[Part, Evidence]], group: GroupPart | None = None) -> list[Checkpoint]:
    """Records the checkpoints of these parts in the catalog, all of them or none, even if this process is killed. Then writes
    their manifests."""
    nodes = [part.checkpoint(evidence, group) for part, evidence in taken]
    new = [part.new(node, evidence) for (part, evidence), node in zip(taken, nodes, strict=True)]
    earlier = [part.earlier(item) for (part, _), item in zip(taken, new, strict=True)]
    with ExitStack() as steps:
        for (part, _), node, others in zip(taken, nodes, earlier, strict=True):
            steps.enter_context(part.journal.step(Record(node.id, tuple(other.id for other in others))))
        context.catalog.checkpoints.add_together(new)
    for (part, _), node, others in zip(taken, nodes, earlier, strict=True):
        for each in (node, *others):
            part.write_manifest(each)
    return nodes
