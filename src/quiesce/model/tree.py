"""The checkpoint tree of one VM. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase

from quiesce.model.errors import NotFoundError
from quiesce.model.grades import Consistency
from quiesce.model.keys import VmKey
from quiesce.model.reports import Filesystem, WriterReport


class Kind(str, Enum):
    PRODUCTION = "production"
    STANDARD = "standard"
    """With memory and devices, as Hyper-V's: restored running, exactly as it was."""
    SAFETY = "safety"
    """Made by restore of the state it left."""
    AUTOMATIC = "automatic"
    """Made when the VM started with no checkpoint, removed when it has shut down cleanly."""


@dataclass(frozen=True)
class DiskImage:
    """What one disk held: an image that is never written again while checkpoints need it."""

    target: str
    path: str
    format: str


class Role(str, Enum):
    NVRAM = "nvram"
    """UEFI variables."""
    TPM = "tpm"
    """Permanent state of an emulated TPM."""
    MEMORY = "memory"
    """Memory and devices, as libvirt saves them."""


@dataclass(frozen=True)
class MachineFile:
    """A part of the machine that is no disk: a copy, never written again."""

    role: Role
    path: str


@dataclass(frozen=True)
class Witness:
    """A server that has no part in a group's checkpoint, and where its applications stood just before."""

    host: str
    vm_uuid: str
    vm_name: str
    writers: tuple[WriterReport, ...]
    reason: str | None = None
    """Why it could not be asked."""

    @property
    def key(self) -> VmKey:
        return VmKey(self.host, self.vm_uuid)


@dataclass(frozen=True)
class GroupPart:
    """That a checkpoint is one VM's part of a group's checkpoint: all parts are of one instant."""

    id: str
    """Of the group's checkpoint."""
    group: str
    name: str
    """Of the group's checkpoint."""
    members: tuple[str, ...]
    """Ids of all its parts, this one included, in the group's order."""
    skew_us: int
    """From the first to the last return of a member's switch, in microseconds, on this host. All that were frozen stood still
    meanwhile."""
    witnesses: tuple[Witness, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A node: immutable images, how sure one can be of them, and the evidence for it."""

    id: str
    host: str
    """The host's id in the catalog: model.keys.VmKey."""
    vm_uuid: str
    vm_name: str
    name: str
    created: str
    """UTC, ISO 8601."""
    kind: Kind
    consistency: Consistency
    required: Consistency
    disks: tuple[DiskImage, ...]
    parent: str | None = None
    off: bool = False
    """Taken while the VM was off."""
    hidden: bool = False
    """Deleted by its user. What others still need of it stays until it can be merged; its own content may be gone."""
    excluded: tuple[str, ...] = ()
    """Disks that are not part of it, by their targets."""
    files: tuple[MachineFile, ...] = ()
    stall_us: int = 0
    """Longest that any write in the guest can have waited, as the guest's own clock saw it, in microseconds."""
    writers: tuple[WriterReport, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    phases_us: dict[str, int] = field(default_factory=dict)
    guest_clock_ns: dict[str, int] = field(default_factory=dict)
    """CLOCK_MONOTONIC of the guest when the last writer held and when the first was released."""
    warnings: tuple[str, ...] = ()
    group: GroupPart | None = None

    @property
    def key(self) -> VmKey:
        return VmKey(self.host, self.vm_uuid)

    def image(self, target: str) -> DiskImage | None:
        return next((disk for disk in self.disks if disk.target == target), None)

    def file(self, role: Role) -> MachineFile | None:
        return next((file for file in self.files if file.role is role), None)

    def paths(self) -> set[str]:
        """Every file it consists of."""
        return {disk.path for disk in self.disks} | {file.path for file in self.files}


@dataclass(frozen=True)
class Tree:
    """All checkpoints of a VM, and which of them the VM's present disks are based on (None: no checkpoint)."""

    nodes: tuple[Checkpoint, ...]
    """Hidden ones included."""
    head_parent: str | None

    @classmethod
    def of(cls, nodes: Iterable[Checkpoint], head_parent: str | None) -> Tree:
        return cls(tuple(sorted(nodes, key=lambda node: (node.created, node.id))), head_parent)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Those a user knows of."""
        return tuple(node for node in self.nodes if not node.hidden)

    def find(self, name: str) -> Checkpoint:
        """The checkpoint of this name or id. Raises NotFoundError."""
        for key in ("name", "id"):
            for node in self.checkpoints:
                if getattr(node, key) == name:
                    return node
        raise NotFoundError(f"no checkpoint named {name!r}", hint="`quiesce tree VM` shows those there are")

    def match(self, pattern: str) -> tuple[Checkpoint, ...]:
        """The checkpoint of this name or id, else all whose names match the shell pattern. Raises NotFoundError."""
        try:
            return (self.find(pattern),)
        except NotFoundError:
            found = tuple(node for node in self.checkpoints if fnmatchcase(node.name, pattern))
            if not found:
                raise
            return found

    def has_name(self, name: str) -> bool:
        return any(node.name == name for node in self.checkpoints)

    def children(self, parent: str | None) -> tuple[Checkpoint, ...]:
        """The checkpoints right above this one, or above hidden ones that are."""
        return tuple(node for node in self.checkpoints if self.visible(node.parent) == parent)

    def subtree(self, root: Checkpoint) -> Iterator[Checkpoint]:
        """The checkpoint and all above it."""
        yield root
        for child in self.children(root.id):
            yield from self.subtree(child)

    def visible(self, node_id: str | None) -> str | None:
        """The node itself, or the nearest below it, that is not hidden."""
        node = self.get(node_id)
        while node and node.hidden:
            node = self.get(node.parent)
        return node.id if node else None

    def ancestors(self, node_id: str | None) -> tuple[Checkpoint, ...]:
        """The node and all below it, nearest first."""
        found: list[Checkpoint] = []
        while (node := self.get(node_id)) and node not in found:
            found.append(node)
            node_id = node.parent
        return tuple(found)

    def get(self, node_id: str | None) -> Checkpoint | None:
        return next((node for node in self.nodes if node.id == node_id), None)
