"""Compares the images of a checkpoint with the digests of all their bytes, and records the digests of those that have none.

A digest settles what a fingerprint cannot (model/fingerprints.py): whether an image that was moved, copied back or touched
still has the bytes that were checkpointed. Reading takes minutes for each 100 GB; meanwhile the VM is not locked, and other
operations go on. Nothing is recorded before an image was read to its end, so this can be killed at any moment, and called
again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from quiesce.catalog.journal import Interrupted
from quiesce.context import Context
from quiesce.disks import fingerprints
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor.vm import Vm
from quiesce.model.chains import Image
from quiesce.model.errors import NotFoundError, RefusedError
from quiesce.model.fingerprints import Discrepancy, Fingerprint
from quiesce.model.names import CheckpointReference
from quiesce.recovery import journalled, recover_all


class ContentState(str, Enum):
    SAME = "same"
    """The bytes are those that were recorded."""
    RECORDED = "recorded"
    """No digest had been recorded; now there is one. The image is the same by its fingerprint."""
    SPOILT = "spoilt"
    """The bytes are others. The checkpoints that read the image are spoilt from now on."""
    UNKNOWN = "unknown"
    """Nothing can be said: see `reason`."""


@dataclass(frozen=True)
class ImageContent:
    path: str
    outcome: ContentState
    reason: str | None = None
    """A sentence without its subject, if the content is spoilt or unknown."""


@dataclass(frozen=True)
class Content:
    """What the images of a checkpoint, backing files included, have."""

    vm: str
    checkpoint: str
    images: tuple[ImageContent, ...]

    def require(self) -> None:
        """Raises RefusedError if an image is spoilt or unknown."""
        wrong = [f"{image.path} is {image.outcome.value}: {image.reason}" for image in self.images if image.reason]
        if wrong:
            raise RefusedError(
                f"checkpoint {self.checkpoint!r} is not known to have what was checkpointed: {'; '.join(wrong)}",
                hint=f"bring the file back from a backup and try again; `quiesce doctor {self.vm}` names all checkpoints that"
                " read it",
                details={"images": {image.path: image.outcome.value for image in self.images}},
            )


def verify_content(context: Context, reference: CheckpointReference) -> Content:
    """Reads all images of the checkpoint, backing files included, and compares them with the recorded digests. An image whose
    digest is the recorded one is known again, and labels that were lowered only because of it are as before; a digest that is
    another one lowers the labels for good.

    Only an image that is the same by its fingerprint gets a first digest: what another program may have changed is never taken
    for right. Raises NotFoundError if a file is gone."""
    with context.vm(reference.vm) as vm:
        with context.locked(vm, "verify"):
            recover_all(context, vm)
            before = survey(context, vm)
        node = before.tree.find(reference.checkpoint)
        if missing := before.missing(node):
            raise NotFoundError(
                f"checkpoint {node.name!r} cannot be compared: {', '.join(missing)} is gone",
                hint="bring the file back from a backup",
            )
        found = []
        for path in sorted(before.chains.needed(disk.path for disk in node.disks)):
            found.append(_compared(context, vm, before, path))
        return Content(vm.name, node.name, tuple(found))


def _compared(context: Context, vm: Vm, before: Survey, path: str) -> ImageContent:
    if path not in before.images or path in before.elsewhere:
        return ImageContent(path, ContentState.UNKNOWN, "it is no file, so nothing tells whether another program changed it")
    phase = f"read {path}"
    with context.phase(phase):
        try:
            digest = context.storage(vm.host).content(path, context.progress(phase))
        except NotFoundError:
            return ImageContent(path, ContentState.UNKNOWN, "it was removed meanwhile, or merged; try again")
    with context.locked(vm, "verify"):
        recover_all(context, vm)
        after = survey(context, vm)
        if _stands(before, path) != _stands(after, path):
            return ImageContent(path, ContentState.UNKNOWN, "it was changed while it was read; try again")
        return _judged(context, vm, after, path, digest)


def _stands(found: Survey, path: str) -> tuple[Image | None, Fingerprint | None]:
    """What must not change while an image is read. Its space may: another program may fill holes with zeros."""
    image = found.images.get(path)
    return replace(image, allocation=0) if image else None, found.fingerprints.get(path)


def _judged(context: Context, vm: Vm, found: Survey, path: str, digest: str) -> ImageContent:
    known, difference = found.fingerprints.get(path), found.discrepancies.get(path)
    if known is None:
        return ImageContent(path, ContentState.UNKNOWN, "nothing was recorded of it; the next checkpoint of the VM does that")
    if path in found.writing:
        return ImageContent(path, ContentState.SPOILT, "the VM writes to it")
    if known.content and known.content != digest:
        told = difference or Discrepancy("", spoilt=True)
        told = replace(told, text=f"{told.text}; its bytes are others".removeprefix("; "), spoilt=True)
        with journalled(context, vm, "content") as journal:
            fingerprints.lower_for_good(context, vm, journal, found, {path: told.of(path)})
        return ImageContent(path, ContentState.SPOILT, told.text)
    if difference and not known.content:
        outcome = ContentState.SPOILT if difference.spoilt else ContentState.UNKNOWN
        return ImageContent(path, outcome, f"{difference.text}; no digest of its content had been recorded before")
    if difference or not known.content:
        fingerprints.vouch(context, vm, found.images[path], digest)
    return ImageContent(path, ContentState.SAME if known.content else ContentState.RECORDED)


def recover(_context: Context, _vm: Vm, _operation: Interrupted) -> str:
    """Nothing to do: the labels are lowered or not, and recovery.py writes the manifests again."""
    return "can be called again"
