"""An export in a directory, as a stranger could send it: with the right checksums, whatever is in it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from quiesce.catalog import exported
from quiesce.catalog.exported import Export, ExportedDisk, ExportedFile
from tests.definitions import definition_of
from tests.samples import node

CAPACITY = 16 * 2**20


class Stranger:
    def __init__(self, place: Path, *, kind: str = "server") -> None:
        self.place = place
        place.mkdir()
        self.image = place / "vda.qcow2"
        self.make_image()
        self.definition = definition_of(kind, path=str(self.image))
        self.disks = [ExportedDisk("vda", "vda.qcow2", CAPACITY)]
        self.nvram: str | None = None
        self.tpm: str | None = None
        self.sign()

    def make_image(self, *options: str) -> None:
        self.image.unlink(missing_ok=True)
        qemu_img("create", "-q", "-f", "qcow2", *options, str(self.image), str(CAPACITY))

    def sign(self) -> None:
        """Writes the definition and a manifest that fits what is in the directory."""
        (self.place / exported.DOMAIN).write_bytes(self.definition.encode(errors="surrogateescape"))
        names = [*(disk.file for disk in self.disks), self.nvram, self.tpm, exported.DOMAIN]
        files = tuple(self._listed(name) for name in names if name)
        manifest = Export(exported.FORMAT, node("n"), tuple(self.disks), files, self.nvram, self.tpm)
        (self.place / exported.NAME).write_bytes(exported.dump(manifest))

    def _listed(self, name: str) -> ExportedFile:
        content = (self.place / name).read_bytes() if (self.place / name).is_file() else b""
        return ExportedFile(name, len(content), hashlib.sha256(content).hexdigest())

    def put(self, element: str, where: str = "</devices>") -> None:
        """Puts an element into the definition."""
        assert where in self.definition
        self.definition = self.definition.replace(where, f"{element}{where}")
        self.sign()


def qemu_img(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True)


def everything_below(place: Path) -> dict[str, tuple[object, ...]]:
    """Each file's content, owner, mode and times."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(place.rglob("*")):
        stat = os.lstat(path)
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        digest = hashlib.sha256(content).hexdigest()
        found[str(path)] = (digest, stat.st_uid, stat.st_gid, oct(stat.st_mode), stat.st_mtime_ns)
    return found
