"""The steps that operations journal before they change anything.

Each step is one class. Its fields are all that a recovery needs: the process that wrote the step may be gone. A step is stored
under its class's name. A step that this quiesce does not know (a newer quiesce wrote it) keeps its operation open: see
recovery.py."""

from __future__ import annotations

from dataclasses import dataclass

from quiesce.model.standing import Untouched
from quiesce.model.tree import Checkpoint


@dataclass(frozen=True)
class MakeOverlay:
    """An overlay of the disk `target` is made at `path`, on the backing file `backing`."""

    target: str
    path: str
    backing: str


@dataclass(frozen=True)
class WriteFile:
    """A small file beside the images: UEFI variables, TPM state."""

    path: str


@dataclass(frozen=True)
class RemoveFile:
    """A file that nothing needs."""

    path: str


@dataclass(frozen=True)
class Switch:
    """The VM is made to write `overlays`, by target. `memory`: the file its memory is saved to."""

    overlays: dict[str, str]
    memory: str | None = None


@dataclass(frozen=True)
class Record:
    """A checkpoint is recorded."""

    checkpoint: str


@dataclass(frozen=True)
class Stop:
    """The VM is powered off."""


@dataclass(frozen=True)
class PutBack:
    """The VM is defined on the overlays `sources` of a checkpoint's images."""

    checkpoint: str
    sources: dict[str, str]
    before: str
    """The definition it had."""
    untouched: Untouched
    safety: Checkpoint | None = None
    """The checkpoint of the state it leaves; None if that is discarded."""
    tpm: str | None = None
    """The file with the TPM's state at the checkpoint."""


@dataclass(frozen=True)
class Hide:
    """Deleted checkpoints are hidden from users."""

    checkpoints: tuple[str, ...]


@dataclass(frozen=True)
class Rename:
    checkpoint: str


@dataclass(frozen=True)
class Merge:
    """The image `top` is committed into `base`."""

    top: str
    base: str
    target: str
    branches: tuple[str, ...]
    """The images whose backing file is `top`."""
    checkpoints: tuple[str, ...]
    """All that have the image `top`, hidden ones too."""
    checkpoint: str | None = None
    """Whose image `top` is; None: the VM's own."""


@dataclass(frozen=True)
class MoveBranch:
    """The image `image`, whose backing file `top` was merged into `base`, gets `base` as backing file."""

    image: str
    top: str
    base: str


@dataclass(frozen=True)
class Forget:
    """A hidden checkpoint that nothing needs is removed from the catalog; `children` get its parent."""

    checkpoint: str
    children: tuple[str, ...]


@dataclass(frozen=True)
class WriteExport:
    """Files with these names are written into `directory`."""

    directory: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class CopyDisk:
    """The disk `target` is written into an export."""

    target: str


@dataclass(frozen=True)
class CopyIn:
    """A file of an export is copied to `path`."""

    path: str


@dataclass(frozen=True)
class Define:
    """A VM is defined."""


@dataclass(frozen=True)
class RestoreGroup:
    """The members of a group are put back to its checkpoint `reference`, one after the other."""

    reference: str


Step = (
    MakeOverlay
    | WriteFile
    | RemoveFile
    | Switch
    | Record
    | Stop
    | PutBack
    | Hide
    | Rename
    | Merge
    | MoveBranch
    | Forget
    | WriteExport
    | CopyDisk
    | CopyIn
    | Define
    | RestoreGroup
)
BY_NAME: dict[str, type[Step]] = {step.__name__: step for step in Step.__args__}
