"""The label of a checkpoint, and the evidence for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from quiesce.model.fingerprints import Fingerprint
from quiesce.model.grades import Consistency
from quiesce.model.reports import Filesystem, WriterReport
from quiesce.model.standing import Untouched
from quiesce.model.tree import Kind, MachineFile


@dataclass(frozen=True)
class Evidence:
    """The label of one VM's checkpoint, and what proves it. The fields are those of model.tree.Checkpoint."""

    consistency: Consistency
    kind: Kind = Kind.PRODUCTION
    off: bool = False
    stall_us: int = 0
    writers: tuple[WriterReport, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    phases_us: dict[str, int] = field(default_factory=dict)
    guest_clock_ns: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    files: tuple[MachineFile, ...] = ()
    untouched: Untouched | None = None
    """If the VM is off: its new overlays, to which nobody has written yet."""
    fingerprints: dict[str, Fingerprint] | None = None
    """If the VM is off: of the images that the label was given to, from before it was given. None: nobody writes to the images
    since the switch, so they are read when the checkpoint is recorded."""
    switched_ns: int = 0
    """When the switch returned, by this host's CLOCK_MONOTONIC."""
