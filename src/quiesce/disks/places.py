"""Where the overlays of a VM go, and the small files beside them: manifests, UEFI variables, TPM state, saved memory."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from quiesce.catalog import manifest
from quiesce.model.errors import HypervisorError, RefusedError
from quiesce.model.names import check_directory
from quiesce.model.tree import Checkpoint
from quiesce.storage.port import Storage


def for_overlay(storage: Storage, image: str, chosen: str | None, otherwise: str | None) -> str | None:
    """The place for an overlay of this image: the one that the administrator chose, or that of the image. A block device has no
    place: then `otherwise`."""
    if chosen is not None:
        return chosen
    return storage.place(image) if storage.knows(image) else otherwise


def for_overlays(storage: Storage, node: Checkpoint, chosen: str | None) -> dict[str, str]:
    """The place for an overlay of each image of the checkpoint, by target. Raises RefusedError if one cannot be used."""
    otherwise = of_checkpoint(storage, node)
    found = {disk.target: for_overlay(storage, disk.path, chosen, otherwise) or otherwise for disk in node.disks}
    for place in sorted(set(found.values())):
        require_place(storage, place)
    return found


def first(storage: Storage, images: Iterable[str]) -> str | None:
    """The place of the first of these images that is a file."""
    return next((storage.place(path) for path in images if storage.knows(path)), None)


def of_checkpoint(storage: Storage, node: Checkpoint) -> str:
    """The place of the checkpoint's manifest: that of the overlays that were made with it. Those of an older quiesce have it
    beside their first image, which is a file."""
    return node.place or storage.place(node.disks[0].path)


def manifests(storage: Storage, place: str) -> dict[str, str]:
    """The paths of the manifests in a place, by the ids of their checkpoints."""
    paths = storage.names(place, *manifest.ENDS)
    return {id: path for path in paths if (id := manifest.checkpoint_id(posixpath.basename(path)))}


def chosen(storage: Storage, directory: str) -> str:
    """The place that an administrator names. Raises UsageError if it is no absolute path, RefusedError if no overlay can be
    made there."""
    place = storage.place(storage.inside(check_directory(directory), "-"))
    require_place(storage, place)
    return place


def require_place(storage: Storage, place: str) -> None:
    """Raises RefusedError if no overlay can be made there."""
    try:
        room = storage.room(place)
    except HypervisorError as error:
        raise RefusedError(
            f"the directory {place}, into which overlays are to go, cannot be used: {error.message}",
            hint="make the directory or mount it, or choose another one: --overlays DIRECTORY",
        ) from error
    if room.read_only:
        raise RefusedError(
            f"the directory {place}, into which overlays are to go, is on a filesystem that is mounted read-only",
            hint="the kernel does that after an error of the filesystem (dmesg): repair it and mount it again; or choose"
            " another directory: --overlays DIRECTORY",
        )
