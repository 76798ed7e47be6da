"""A VM with two small disks and no guest; compares the content of its disks and checkpoints with what it should be."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import libvirt
import libvirt_qemu

from lab.bare import Bare
from quiesce.catalog import manifest
from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.disks import fingerprints
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor.vm import Vm
from quiesce.model.keys import VmKey
from quiesce.model.tree import Tree
from quiesce.operations.tree import tree

SIZE = 1024 * 1024
"""Size of each disk, in bytes: eight clusters of an overlay."""
UNIT = 4096
TARGETS = ("vda", "vdb")
SAVED = ".saved"

Disks = dict[str, bytes]
"""The content that a guest would read, by disk."""


class Forest:
    """A VM with a directory and a catalog of its own. The VM is off or paused, unless a test starts it unpaused."""

    def __init__(self, directory: Path, *, size: int = SIZE, name: str = "") -> None:
        self.bare = Bare(directory, disks=2, start=False, size=size, name=name)
        self.url = f"sqlite:///{directory}/catalog/catalog.db"
        self.reopen()
        self._right: dict[str, tuple[bytes, tuple[object, ...]]] = {}
        """By image: the content that was found right, and the state of the chain's files at that time."""

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
        """Writes to a disk, as a guest would."""
        command = f"write -q -P {pattern} {offset} {length}"
        if self.running:
            self._qemu_io(target, command)
            self._qemu_io(target, "flush")
        else:
            subprocess.run(["qemu-io", "-c", command, self.sources()[target]], check=True, capture_output=True)

    def _qemu_io(self, target: str, command: str) -> None:
        device = f"/machine/peripheral/virtio-disk{TARGETS.index(target)}/virtio-backend"
        said = libvirt_qemu.qemuMonitorCommand(
            self.bare.domain, f'qemu-io -d {device} "{command}"', libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        )
        assert not said.strip(), said

    def sources(self) -> dict[str, str]:
        with contextlib.closing(Vm("qemu:///system", self.name)) as vm:
            return vm.heads()

    @property
    def key(self) -> VmKey:
        with self.context.vm(self.bare.domain.UUIDString()) as vm:
            return vm.key

    def tree(self) -> Tree:
        return tree(self.context, self.name)

    def survey(self) -> Survey:
        with self.context.vm(self.name) as vm:
            return survey(self.context, vm)

    def flush(self) -> None:
        """Has QEMU write its own caches to the files, so that the files can be read."""
        if self.running:
            for target in self.sources():
                self._qemu_io(target, "flush")

    def differing(self, wanted: Mapping[str, bytes], found: Survey) -> set[str]:
        """The images whose content, as a guest reads it, differs from `wanted`. An image that was right is read again only if a
        file of its chain has changed since."""
        keys = {path: (content, self._stamp(path, found)) for path, content in wanted.items()}
        unknown = {path: content for path, content in wanted.items() if self._right.get(path) != keys[path]}
        wrong = set() if all_read_as(unknown) else {path for path, content in unknown.items() if read(path) != content}
        self._right |= {path: keys[path] for path in unknown.keys() - wrong}
        return wrong | {path for path, content in wanted.items() if found.images[path].capacity != len(content)}

    def _stamp(self, path: str, found: Survey) -> tuple[object, ...]:
        stats = [(image, os.stat(image)) for image in found.chains.chain(path)]  # noqa: PTH116 - not for pathlib's sake
        return tuple((image, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for image, stat in stats)

    def files(self) -> set[str]:
        return {str(path) for path in self.bare.directory.iterdir() if path.is_file() and path.suffix not in (".lock", ".raw")}

    def reset(self) -> None:
        """Returns to the beginning: empty disks, no checkpoints, an empty catalog."""
        if self.running:
            self.stop()
        self.catalog.close()
        for place in self.bare.directory.iterdir():
            if place.is_dir() and place.name != SAVED:
                shutil.rmtree(place)
        for path in self.files():
            Path(path).unlink()
        self.bare.make_disks()
        self.bare.define()
        self.reopen()

    def save(self, name: str) -> None:
        """Saves files, catalog and definition for `put_back`. The VM must be off."""
        self.catalog.close()
        place = self.bare.directory / SAVED / name
        shutil.copytree(self.bare.directory, place, ignore=shutil.ignore_patterns("owner.lock", SAVED))
        (place / ".domain.xml").write_text(self.bare.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        self.reopen()

    def put_back(self, name: str) -> None:
        """Brings files, catalog and definition back as they were saved. The VM is off afterwards."""
        with contextlib.suppress(libvirt.libvirtError):  # off, or not even defined
            self.stop()
        self.catalog.close()
        place = self.bare.directory / SAVED / name
        for path in self.bare.directory.iterdir():
            if path.name not in ("owner.lock", SAVED):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(place, self.bare.directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".domain.xml"))
        self.bare.domain = self.bare.connection.defineXML((place / ".domain.xml").read_text())
        self.reopen()
        self.vouch()

    def vouch(self) -> None:
        """Records that all images have the right content, although they were copied: nobody can copy the time of an inode."""
        with self.context.vm(self.name) as vm:
            fingerprints.renew(self.context, vm, self.catalog.fingerprints.of(vm.key))

    def reopen(self) -> None:
        self.catalog = Catalog(self.url)
        self.context = Context("qemu:///system", self.catalog, lambda _: None)

    def remove(self) -> None:
        self.catalog.close()
        self.bare.remove()


def read(path: str) -> bytes:
    """The content that a guest would read from this image."""
    with tempfile.NamedTemporaryFile() as raw:
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", path, raw.name], check=True)
        return Path(raw.name).read_bytes()


def all_read_as(wanted: Mapping[str, bytes]) -> bool:
    """Whether a guest would read this content from each of these images, up to its length. One process reads all images,
    because there are many."""
    lines = []
    for path, content in wanted.items():
        lines.append(f"open -r -U -o driver=qcow2 {path}")
        lines += [f"read -q -P {pattern} {offset} {length}" for offset, length, pattern in _runs(content)]
        lines.append("close")
    done = subprocess.run(["qemu-io"], input="\n".join(lines), capture_output=True, text=True, check=False, timeout=120)
    said = done.stdout.replace("qemu-io> ", "") + done.stderr
    return not said.strip() and done.returncode == 0


def _runs(content: bytes) -> Iterator[tuple[int, int, int]]:
    """(offset, length, byte) of each stretch of whole units with one byte value. Tests write only such stretches."""
    start = 0
    for end in range(UNIT, len(content) + 1, UNIT):
        if end == len(content) or content[end] != content[start]:
            assert content[start:end].count(content[start]) == end - start
            yield start, end - start, content[start]
            start = end


@dataclass(frozen=True)
class Faults:
    lost: tuple[str, ...]
    """Names of the checkpoints with wrong content, or missing, or too many; `now` for the VM itself."""
    orphans: tuple[str, ...]
    """Files that nothing needs, and files that are missing."""

    def __bool__(self) -> bool:
        return bool(self.lost or self.orphans)


def faults(forest: Forest, nodes: dict[str, Disks], head: Disks) -> Faults:
    """How the checkpoints, the VM and the files differ from what they should be."""
    forest.flush()
    found = forest.survey()
    lost = set(nodes) ^ {node.name for node in found.tree.checkpoints}
    wanted = [("now", path, head[target]) for target, path in found.head.items()]
    for node in found.tree.checkpoints:
        if {disk.target for disk in node.disks} == nodes.get(node.name, {}).keys():
            wanted += [(node.name, disk.path, nodes[node.name][disk.target]) for disk in node.disks]
        else:
            lost.add(node.name)
    images: Disks = {}
    lost |= {name for name, path, content in wanted if images.setdefault(path, content) != content}
    wrong = forest.differing(images, found)
    lost |= {name for name, path, _ in wanted if path in wrong}
    manifests = {str(forest.bare.directory / manifest.name(node.id)) for node in found.tree.nodes}
    # By the images' headers: a record alone does not make a file needed.
    needed = found.chains.needed({*found.head.values(), *(path for node in found.tree.nodes for path in node.paths())})
    orphans = set(found.orphans()) | forest.files() ^ (needed | manifests)
    return Faults(tuple(sorted(lost)), tuple(sorted(orphans)))


def check(forest: Forest, nodes: dict[str, Disks], head: Disks) -> None:
    """Asserts that every checkpoint and the VM have the right content, and that no file exists that nothing needs."""
    assert faults(forest, nodes, head) == Faults((), ())
