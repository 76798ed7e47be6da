"""The manifest of an export. It lists the files of the directory, so that the import can tell that the export is complete."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from quiesce.codec import CodecError, decode, encode
from quiesce.model.errors import UsageError
from quiesce.model.names import check_file_name, check_target
from quiesce.model.tree import Checkpoint

NAME = "quiesce-export.json"
DOMAIN = "domain.xml"
FORMAT = 1
MAX_BYTES = 4 * 2**20
"""Size of a manifest. It has some thousand bytes for each server that the checkpoint's evidence names."""
MAX_FILES = 200
_SHA256 = re.compile(r"[0-9a-f]{64}")


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

    def file(self, name: str) -> ExportedFile:
        """A file that the manifest lists."""
        return next(file for file in self.files if file.name == name)


def dump(export: Export) -> bytes:
    return json.dumps(encode(export), indent=1, sort_keys=True).encode() + b"\n"


def load(content: bytes) -> Export:
    """Raises UsageError if `content` is not the manifest of an export, or not consistent in itself."""
    try:
        export = decode(Export, json.loads(content))
    except (ValueError, RecursionError, CodecError) as error:
        raise UsageError(f"not the manifest of an export: {error}") from error
    if export.format != FORMAT:
        raise UsageError(
            f"the export has format {export.format}; this quiesce reads format {FORMAT}",
            hint="import it with the version of quiesce that wrote it, or export the checkpoint again",
        )
    if problem := _problem(export):
        raise UsageError(f"not the manifest of an export: {problem}")
    return export


def _problem(export: Export) -> str | None:
    if len(export.files) > MAX_FILES or len(export.disks) > MAX_FILES:
        return f"it lists more than {MAX_FILES} files"
    listed = [check_file_name(file.name) for file in export.files]
    targets = [check_target(disk.target) for disk in export.disks]
    if not targets or len({*targets}) < len(targets):
        return "it needs a disk, and a target for each"
    used = [DOMAIN, *(disk.file for disk in export.disks), *(name for name in (export.nvram, export.tpm) if name is not None)]
    if sorted(listed) != sorted(used) or len({*used}) < len(used):
        return "it needs the size and checksum of each of its files, and of no other"
    for file in export.files:
        if file.bytes < 0 or not _SHA256.fullmatch(file.sha256):
            return f"the size or the checksum of {file.name} is impossible"
    return None
