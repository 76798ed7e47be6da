"""A VM with two small disks and no guest, what its disks hold, and what they ought to hold."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import libvirt
import libvirt_qemu

from lab.bare import Bare
from quiesce.catalog import manifest
from quiesce.catalog.store import Catalog
from quiesce.hypervisor.vm import Vm
from quiesce.model.tree import Tree
from quiesce.operations.context import Context
from quiesce.operations.survey import Survey, survey
from quiesce.operations.tree import tree

SIZE = 1024 * 1024
"""Of each disk, in bytes: eight clusters of an overlay."""
UNIT = 4096
TARGETS = ("vda", "vdb")
SAVED = ".saved"

Disks = dict[str, bytes]
"""What a guest would read, by disk."""


class Forest:
    """Below a directory of its own, with a catalog of its own. The VM is off or, where it runs, paused."""

    def __init__(self, directory: Path, *, size: int = SIZE, name: str = "") -> None:
        self.bare = Bare(directory, disks=2, start=False, size=size, name=name)
        self.url = f"sqlite:///{directory}/catalog/catalog.db"
        self.catalog = Catalog(self.url)
        self.context = Context("qemu:///system", self.catalog, lambda _: None)
        self._hashes: dict[tuple[object, ...], str] = {}

    @property
    def name(self) -> str:
        return self.bare.name

    @property
    def running(self) -> bool:
        return bool(self.bare.domain.isActive())

    def start(self, *, paused: bool = True) -> None:
        self.bare.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def stop(self) -> None:
        self.bare.domain.destroy()

    def write(self, target: str, offset: int, length: int, pattern: int) -> None:
        """What a guest would do."""
        command = f"write -q -P {pattern} {offset} {length}"
        if self.running:
            self._qemu_io(target, command)
            self._qemu_io(target, "flush")
        else:
            subprocess.run(["qemu-io", "-c", command, self.sources()[target]], check=True)

    def _qemu_io(self, target: str, command: str) -> None:
        device = f"/machine/peripheral/virtio-disk{TARGETS.index(target)}/virtio-backend"
        said = libvirt_qemu.qemuMonitorCommand(
            self.bare.domain, f'qemu-io -d {device} "{command}"', libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        )
        assert not said.strip(), said

    def sources(self) -> dict[str, str]:
        with contextlib.closing(Vm("qemu:///system", self.name)) as vm:
            return vm.file_disks()

    def tree(self) -> Tree:
        return tree(self.context, self.name)

    def survey(self) -> Survey:
        with contextlib.closing(Vm("qemu:///system", self.name)) as vm:
            return survey(self.context, vm)

    def flush(self) -> None:
        """Has QEMU write what it keeps in its own caches, so that the files can be read."""
        if self.running:
            for target in self.sources():
                self._qemu_io(target, "flush")

    def hash(self, paths: Iterable[str], found: Survey) -> str:
        """Of what a guest would read from these images. Read anew only if a file of their chains has changed."""
        digest = hashlib.sha256()
        for path in paths:
            stats = [(image, os.stat(image)) for image in found.chains.chain(path)]  # noqa: PTH116 - not for pathlib's sake
            key = tuple((image, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for image, stat in stats)
            if key not in self._hashes:
                self._hashes[key] = hashlib.sha256(read(path)).hexdigest()
            digest.update(self._hashes[key].encode())
        return digest.hexdigest()

    def files(self) -> set[str]:
        return {str(path) for path in self.bare.directory.iterdir() if path.is_file() and path.suffix not in (".lock", ".raw")}

    def reset(self) -> None:
        """As if nothing had ever been."""
        if self.running:
            self.stop()
        self.catalog.close()
        shutil.rmtree(self.bare.directory / "catalog", ignore_errors=True)
        for path in self.files():
            Path(path).unlink()
        self.bare.make_disks()
        self.bare.define()
        self.reopen()

    def save(self, name: str) -> None:
        """Keeps files, catalog and definition, of the VM that is off, for `put_back`."""
        self.catalog.close()
        place = self.bare.directory / SAVED / name
        shutil.copytree(self.bare.directory, place, ignore=shutil.ignore_patterns("owner.lock", SAVED))
        (place / ".domain.xml").write_text(self.bare.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        self.reopen()

    def put_back(self, name: str) -> None:
        """All as it was saved; the VM is off."""
        if self.running:
            self.stop()
        self.catalog.close()
        place = self.bare.directory / SAVED / name
        for path in self.bare.directory.iterdir():
            if path.name not in ("owner.lock", SAVED):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(place, self.bare.directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".domain.xml"))
        self.bare.domain = self.bare.connection.defineXML((place / ".domain.xml").read_text())
        self.reopen()

    def reopen(self) -> None:
        self.catalog = Catalog(self.url)
        self.context = Context("qemu:///system", self.catalog, lambda _: None)

    def remove(self) -> None:
        self.catalog.close()
        self.bare.remove()


def read(path: str) -> bytes:
    """What a guest would read from this image."""
    with tempfile.NamedTemporaryFile() as raw:
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", path, raw.name], check=True)
        return Path(raw.name).read_bytes()


def expected_hash(disks: Disks) -> str:
    digest = hashlib.sha256()
    for target in sorted(disks):
        digest.update(hashlib.sha256(disks[target]).hexdigest().encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Faults:
    lost: tuple[str, ...]
    """Checkpoints, and the VM itself, that do not hold what they ought to."""
    orphans: tuple[str, ...]
    """Files that nothing needs, or that should be there and are not."""

    def __bool__(self) -> bool:
        return bool(self.lost or self.orphans)


def faults(forest: Forest, nodes: dict[str, Disks], head: Disks) -> Faults:
    """What differs from what there ought to be."""
    forest.flush()
    found = forest.survey()
    lost = set(nodes) ^ {node.name for node in found.tree.checkpoints}
    for node in found.tree.checkpoints:
        paths = [disk.path for disk in sorted(node.disks, key=lambda disk: disk.target)]
        if node.name in nodes and forest.hash(paths, found) != expected_hash(nodes[node.name]):
            lost.add(node.name)
    if forest.hash([path for _, path in sorted(found.head.items())], found) != expected_hash(head):
        lost.add("now")
    manifests = {str(forest.bare.directory / manifest.name(node.id)) for node in found.tree.nodes}
    orphans = set(found.orphans()) | forest.files() ^ (found.needed() | manifests)
    return Faults(tuple(sorted(lost)), tuple(sorted(orphans)))


def check(forest: Forest, nodes: dict[str, Disks], head: Disks) -> None:
    """Every checkpoint and the VM hold what they ought to, and no file is there that nothing needs."""
    assert faults(forest, nodes, head) == Faults((), ())
