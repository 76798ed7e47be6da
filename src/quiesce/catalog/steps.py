"""The steps that operations journal before they change anything.

Each step is one class. Its fields are all that a recovery needs, because the process that wrote the step may be gone. The
catalog stores a step under the name of its class: a class with another name is another step. An operation with a step that this
quiesce does not know (a newer quiesce wrote it) stays open: see recovery.py."""

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
    backing_format: str = "qcow2"


@dataclass(frozen=True)
class WriteFile:
    """A small file beside the images is written: UEFI variables, TPM state."""

    path: str


@dataclass(frozen=True)
class RemoveFile:
    """A file that nothing needs is removed."""

    path: str


@dataclass(frozen=True)
class Switch:
    """The VM is switched to `overlays` (path by target). `memory`: the file to which its memory is saved."""

    overlays: dict[str, str]
    memory: str | None = None


@dataclass(frozen=True)
class Record:
    """A checkpoint is recorded."""

    checkpoint: str
    earlier: tuple[str, ...] = ()
    """Ids of earlier checkpoints whose images have a fingerprint only now."""


@dataclass(frozen=True)
class Stop:
    """The VM is powered off."""


@dataclass(frozen=True)
class PutBack:
    """A restore: the VM gets a definition whose disks are the overlays `sources`, with the images of `checkpoint` as backing
    files."""

    checkpoint: str
    sources: dict[str, str]
    """Path of each overlay, by target."""
    before: str
    """The VM's definition before the restore."""
    untouched: Untouched
    safety: Checkpoint | None = None
    """The checkpoint of the state before the restore; None if that state is discarded."""
    tpm: str | None = None
    """The file with the TPM's state at the checkpoint."""


@dataclass(frozen=True)
class Hide:
    """Deleted checkpoints are hidden from users."""

    checkpoints: tuple[str, ...]
    files: tuple[str, ...] = ()
    """Their files besides images, which nobody needs any more."""


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
    """Ids of all checkpoints that have the image `top`, hidden ones too."""
    checkpoint: str | None = None
    """Id of the checkpoint that owns `top`; None: the VM writes `top`."""


@dataclass(frozen=True)
class MoveBranch:
    """The image `image` gets `base` as its backing file, instead of `top`, which was merged into `base`."""

    image: str
    top: str
    base: str


@dataclass(frozen=True)
class Shorten:
    """The checkpoint `owner` gets the image `copy` in place of `image`, which the hidden checkpoint `hidden` gets."""

    target: str
    image: str
    copy: str
    owner: str
    hidden: str
    head: str | None = None
    """The image that the VM writes, if it is an overlay of `image`."""
    overlay: str | None = None
    """The overlay of `copy` that the VM gets in place of `head`."""


@dataclass(frozen=True)
class Forget:
    """A checkpoint that was deleted or given up, and that nothing needs, leaves the catalog. The checkpoints `children` get
    its parent as theirs."""

    checkpoint: str
    children: tuple[str, ...]
    files: tuple[str, ...] = ()
    """Its files, of which quiesce removes those that nothing else needs."""


@dataclass(frozen=True)
class Relabel:
    """The labels of checkpoints are lowered, because another program changed their images."""

    checkpoints: tuple[str, ...]


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
class MakePlace:
    """The directory `path`, which does not exist, is made."""

    path: str


@dataclass(frozen=True)
class MakeFile:
    """The file `path` is made, which goes when the operation ends."""

    path: str


@dataclass(frozen=True)
class BootCopy:
    """A copy of a checkpoint of the VM `vm`, a UUID, is booted aside. The journal's own UUID is the copy's."""

    vm: str
    checkpoint: str


@dataclass(frozen=True)
class Prove:
    """The proof of a checkpoint is recorded."""

    checkpoint: str


@dataclass(frozen=True)
class Define:
    """A VM is defined."""


@dataclass(frozen=True)
class RestoreGroup:
    """The members of a group are restored to its checkpoint `reference`, one after the other."""

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
    | Shorten
    | Forget
    | Relabel
    | WriteExport
    | CopyDisk
    | CopyIn
    | MakePlace
    | Define
    | MakeFile
    | BootCopy
    | Prove
    | RestoreGroup
)
BY_NAME: dict[str, type[Step]] = {step.__name__: step for step in Step.__args__}
