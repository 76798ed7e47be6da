"""The manifest of an export. It lists the files of the directory, so that the import can tell that the export is complete."""

from __future__ import annotations

import json
from dataclasses import dataclass

from quiesce.codec import CodecError, decode, encode
from quiesce.model.errors import QuiesceError
from quiesce.model.tree import Checkpoint

NAME = "quiesce-export.json"
DOMAIN = "domain.xml"
FORMAT = 1


@dataclass(frozen=True)
class ExportedFile:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportedDisk:
    target: str
    file: str
    capacity: int
    """Virtual size, in bytes."""


@dataclass(frozen=True)
class Export:
    format: int
    checkpoint: Checkpoint
    disks: tuple[ExportedDisk, ...]
    files: tuple[ExportedFile, ...]
    """Every file in the directory except the manifest."""
    nvram: str | None = None
    tpm: str | None = None


def dump(export: Export) -> bytes:
    return json.dumps(encode(export), indent=1, sort_keys=True).encode() + b"\n"


def load(content: bytes) -> Export:
    """Raises QuiesceError if `content` is not the manifest of an export."""
    try:
        export = decode(Export, json.loads(content))
    except (ValueError, RecursionError, CodecError) as error:
        raise QuiesceError(f"not the manifest of an export: {error}") from error
    if export.format != FORMAT:
        raise QuiesceError(
            f"the export has format {export.format}; this quiesce reads format {FORMAT}",
            hint="import it with the version of quiesce that wrote it, or export the checkpoint again",
        )
    for name in [export.nvram, export.tpm, *(disk.file for disk in export.disks), *(file.name for file in export.files)]:
        if name is not None and ("/" in name or name in ("", ".", "..")):
            raise QuiesceError(f"not the manifest of an export: {name!r} is not the name of a file in its directory")
    return export
