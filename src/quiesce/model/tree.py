"""The checkpoint tree of one VM. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from quiesce.model.errors import NotFoundError
from quiesce.model.grades import Consistency
from quiesce.model.reports import Filesystem, Writer


class Kind(str, Enum):
    PRODUCTION = "production"
    SAFETY = "safety"
    """Made by restore of the state it left."""


@dataclass(frozen=True)
class DiskImage:
    """What one disk held: an image that is never written again while checkpoints need it."""

    target: str
    path: str
    format: str


@dataclass(frozen=True)
class Checkpoint:
    """A node: immutable images, how sure one can be of them, and the evidence for it."""

    id: str
    host: str
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
    stall_us: int = 0
    """Longest that any write in the guest can have waited, as the guest's own clock saw it, in microseconds."""
    writers: tuple[Writer, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    phases_us: dict[str, int] = field(default_factory=dict)
    guest_clock_ns: dict[str, int] = field(default_factory=dict)
    """CLOCK_MONOTONIC of the guest when the last writer held and when the first was released."""
    warnings: tuple[str, ...] = ()

    def image(self, target: str) -> DiskImage | None:
        return next((disk for disk in self.disks if disk.target == target), None)


@dataclass(frozen=True)
class Tree:
    """All checkpoints of a VM, and which of them the VM's present disks are based on (None: no checkpoint)."""

    checkpoints: tuple[Checkpoint, ...]
    head_parent: str | None
    deleting: frozenset[str] = frozenset()
    """Ids of checkpoints whose deletion has begun: their images may already hold what came later."""

    @classmethod
    def of(cls, checkpoints: Iterable[Checkpoint], head_parent: str | None, deleting: Iterable[str] = ()) -> Tree:
        ordered = tuple(sorted(checkpoints, key=lambda node: (node.created, node.id)))
        return cls(ordered, head_parent, frozenset(deleting))

    def find(self, name: str) -> Checkpoint:
        """The checkpoint of this name or id. Raises NotFoundError."""
        for key in ("name", "id"):
            for node in self.checkpoints:
                if getattr(node, key) == name:
                    return node
        raise NotFoundError(f"no checkpoint named {name!r}", hint="`quiesce tree VM` shows those there are")

    def has_name(self, name: str) -> bool:
        return any(node.name == name for node in self.checkpoints)

    def children(self, parent: str | None) -> tuple[Checkpoint, ...]:
        return tuple(node for node in self.checkpoints if node.parent == parent)

    def get(self, node_id: str | None) -> Checkpoint | None:
        return next((node for node in self.checkpoints if node.id == node_id), None)
