"""The checkpoint tree of one VM. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from fnmatch import fnmatchcase
from functools import cached_property

from quiesce.model.errors import NameTakenError, NotFoundError
from quiesce.model.grades import Consistency
from quiesce.model.keys import VmKey
from quiesce.model.proof import Proof
from quiesce.model.reports import Filesystem, WriterReport


class Kind(str, Enum):
    PRODUCTION = "production"
    STANDARD = "standard"
    """With memory and devices, as in Hyper-V: a restore resumes the VM as it ran."""
    SAFETY = "safety"
    """The state before a restore; the restore made it."""
    AUTOMATIC = "automatic"
    """Taken when the VM started and had no checkpoint; removed when the VM has shut down cleanly."""
    SETTLED = "settled"
    """Another checkpoint, after a copy of it was booted aside, had recovered what there was to recover, and shut down."""


@dataclass(frozen=True)
class DiskImage:
    """The content of one disk: an image that nobody writes while a checkpoint needs it."""

    target: str
    path: str
    format: str
    size: int = 0
    """Virtual size when the checkpoint was taken, in bytes; 0 in records of an older quiesce."""


class Role(str, Enum):
    NVRAM = "nvram"
    """UEFI variables."""
    TPM = "tpm"
    """Permanent state of an emulated TPM."""
    MEMORY = "memory"
    """Memory and devices, as libvirt saves them."""


@dataclass(frozen=True)
class MachineFile:
    """A copy of a part of the VM that is not a disk. Nobody writes the copy again."""

    role: Role
    path: str


@dataclass(frozen=True)
class Witness:
    """A server that has no part in a group's checkpoint, and the positions of its applications just before the window."""

    host: str
    vm_uuid: str
    vm_name: str
    writers: tuple[WriterReport, ...]
    reason: str | None = None
    """Why the server could not be asked; None: it was asked."""

    @property
    def key(self) -> VmKey:
        return VmKey(self.host, self.vm_uuid)


@dataclass(frozen=True)
class GroupPart:
    """The checkpoint of a group that a VM's checkpoint is a part of. All parts are of one instant."""

    id: str
    """Id of the group's checkpoint."""
    group: str
    name: str
    """Name of the group's checkpoint."""
    members: tuple[str, ...]
    """Ids of all parts, this one included, in the group's order."""
    skew_us: int
    """Time on this host from the first member's switch to the last member's, in microseconds. All frozen members were at rest
    during this time."""
    witnesses: tuple[Witness, ...] = ()
    """The group's external servers."""


@dataclass(frozen=True)
class Checkpoint:
    """A node of the tree: immutable images, their label, and the evidence for the label."""

    id: str
    host: str
    """The host's id in the catalog (see model.keys.VmKey)."""
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
    """Whether the VM was off when the checkpoint was taken."""
    hidden: bool = False
    """Whether a user deleted the checkpoint. Images that other checkpoints or the VM need stay until they can be merged; the
    content of the hidden checkpoint itself may be gone."""
    excluded: tuple[str, ...] = ()
    """Targets of the disks that the checkpoint leaves out."""
    place: str = ""
    """The directory of its manifest, and of the overlays that were made with it; empty in records of an older quiesce."""
    files: tuple[MachineFile, ...] = ()
    stall_us: int = 0
    """Longest time that a write in the guest can have waited, by the guest's clock, in microseconds."""
    writers: tuple[WriterReport, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    phases_us: dict[str, int] = field(default_factory=dict)
    guest_clock_ns: dict[str, int] = field(default_factory=dict)
    """The guest's CLOCK_MONOTONIC: `held`, when the last writer held; `released`, when the first writer was released."""
    warnings: tuple[str, ...] = ()
    group: GroupPart | None = None
    changed: tuple[str, ...] = ()
    """Images in its backing chains that another program changed, or may have. The label is then crash."""
    spoilt: str | None = None
    """When it was found that the content is not, or not known to be, what was checkpointed; UTC, ISO 8601. It stays so."""

    proof: Proof | None = None
    """What came of it when it was booted aside; None: nobody tried, or an image changed since."""

    @property
    def key(self) -> VmKey:
        return VmKey(self.host, self.vm_uuid)

    def image(self, target: str) -> DiskImage | None:
        return next((disk for disk in self.disks if disk.target == target), None)

    def file(self, role: Role) -> MachineFile | None:
        return next((file for file in self.files if file.role is role), None)

    def paths(self) -> set[str]:
        """Every file that the checkpoint consists of, without backing files."""
        return {disk.path for disk in self.disks} | {file.path for file in self.files}


@dataclass(frozen=True)
class Tree:
    """All checkpoints of a VM, and the one that the VM is based on."""

    nodes: tuple[Checkpoint, ...]
    """All checkpoints, hidden ones too, oldest first."""
    head_parent: str | None
    """Id of the checkpoint that the VM's present disks are based on; None: no checkpoint."""

    @classmethod
    def of(cls, nodes: Iterable[Checkpoint], head_parent: str | None) -> Tree:
        """The tree of these checkpoints. Where parents form a circle, which only a damaged record can make, the oldest
        checkpoint of the circle has no parent."""
        found = sorted(nodes, key=lambda node: (node.created, node.id))
        roots = _closing({node.id: node.parent for node in found})
        return cls(tuple(replace(node, parent=None) if node.id in roots else node for node in found), head_parent)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that are not hidden."""
        return tuple(node for node in self.nodes if not node.hidden)

    def find(self, name: str) -> Checkpoint:
        """The checkpoint of this name or id. Raises NotFoundError."""
        for key in ("name", "id"):
            for node in self.checkpoints:
                if getattr(node, key) == name:
                    return node
        raise NotFoundError(f"no checkpoint named {name!r}", hint="`quiesce tree VM` lists the VM's checkpoints")

    def match(self, pattern: str) -> tuple[Checkpoint, ...]:
        """The checkpoint of this name or id; if there is none, all checkpoints whose names match the shell pattern. Raises
        NotFoundError."""
        try:
            return (self.find(pattern),)
        except NotFoundError:
            found = tuple(node for node in self.checkpoints if fnmatchcase(node.name, pattern))
            if not found:
                raise
            return found

    def has_name(self, name: str) -> bool:
        return any(node.name == name for node in self.checkpoints)

    def require_free_name(self, name: str, vm: str, hint: str) -> None:
        """Raises NameTakenError if a checkpoint of the VM, which is called `vm`, has the name."""
        if self.has_name(name):
            raise NameTakenError(f"{vm} has a checkpoint named {name!r} already", hint=hint)

    def children(self, parent: str | None) -> tuple[Checkpoint, ...]:
        """The checkpoints based on this one, directly or through hidden checkpoints."""
        return tuple(self._children.get(parent, ()))

    def subtree(self, root: Checkpoint) -> Iterator[Checkpoint]:
        """The checkpoint and all checkpoints based on it."""
        ahead = [root]
        while ahead:
            node = ahead.pop()
            yield node
            ahead += reversed(self.children(node.id))

    def visible(self, node_id: str | None) -> str | None:
        """The id of the nearest checkpoint that is not hidden: this one, or one that it is based on."""
        node = self.get(node_id)
        while node and node.hidden:
            node = self.get(node.parent)
        return node.id if node else None

    def ancestors(self, node_id: str | None) -> tuple[Checkpoint, ...]:
        """The checkpoint and all that it is based on, nearest first."""
        found: dict[str, Checkpoint] = {}
        while (node := self.get(node_id)) and node.id not in found:
            found[node.id] = node
            node_id = node.parent
        return tuple(found.values())

    def get(self, node_id: str | None) -> Checkpoint | None:
        return self._by_id.get(node_id)

    @cached_property
    def _by_id(self) -> Mapping[str | None, Checkpoint]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def _children(self) -> Mapping[str | None, list[Checkpoint]]:
        found: dict[str | None, list[Checkpoint]] = {}
        for node in self.checkpoints:
            found.setdefault(self.visible(node.parent), []).append(node)
        return found


def _closing(parents: Mapping[str, str | None]) -> set[str]:
    """The first id, in the order of `parents`, of each circle of parents."""
    found: set[str] = set()
    order = {id: place for place, id in enumerate(parents)}
    done: set[str] = set()
    for start in parents:
        path: dict[str, None] = {}
        here: str | None = start
        while here is not None and here in parents and here not in done and here not in path:
            path[here] = None
            here = parents[here]
        if here is not None and here in path:
            circle = list(path)[list(path).index(here) :]
            found.add(min(circle, key=order.__getitem__))
        done |= path.keys()
    return found
