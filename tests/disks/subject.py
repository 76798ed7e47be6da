"""A VM with one disk of some kind (kinds.py), whose content is read and written as a guest does it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import libvirt
import libvirt_qemu

from lab.bare import Bare
from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.hypervisor import domain_xml
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.doctor import doctor
from quiesce.operations.tree import tree
from tests.disks.making import SIZE, Bench, Made

PIECE = 64 * 1024
Content = dict[int, int | None]
"""The byte of each piece of the disk that was written; None: something that is not compared, as the header of an image."""


class Subject:
    """A VM with one disk, on QEMU's paused processor."""

    def __init__(self, bench: Bench, made: Made, more: str = "", *, thorough: bool = False) -> None:
        self.bench, self.made, self._thorough = bench, made, thorough
        self.bare = Bare(bench.directory, disk_xml=made.xml + more, machine_xml=made.machine, disks=0, start=False)
        self.catalog = Catalog(f"sqlite:///{bench.directory}/catalog/catalog.db")
        self.context = Context("qemu:///system", self.catalog, lambda _: None)
        self.content: Content = dict.fromkeys(made.others)
        self.name = self.bare.name

    @property
    def target(self) -> str:
        return self.image().target

    def image(self) -> domain_xml.Disk:
        """The disk as the definition has it."""
        return domain_xml.disks(self.definition())[0]

    def size(self) -> int:
        """Of the disk, as the guest sees it, in bytes."""
        return int(self.bare.connection.lookupByName(self.name).blockInfo(self.target)[0])

    def definition(self) -> str:
        return str(self.bare.connection.lookupByName(self.name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def start(self) -> None:
        self.bare.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def checkpoint(self, name: str, exclude: tuple[str, ...] = (), overlays: str | None = None) -> Content:
        checkpoint(self.context, self.name, name=name, required=Consistency.CRASH, exclude=exclude, overlays=overlays)
        return dict(self.content)

    def write(self, piece: int, pattern: int) -> None:
        self.content[piece] = pattern
        self._as_guest(f"write -q -P {pattern} {piece * PIECE} {PIECE}", "flush")

    def holds(self, content: Content) -> None:
        """The guest reads this."""
        self._as_guest(*reads(content))

    def starts_with(self, content: Content) -> None:
        """The VM starts, if it is off, and its guest reads this."""
        self._as_guest(*reads(content), start=True)

    def _as_guest(self, *commands: str, start: bool = False) -> None:
        domain = self.bare.connection.lookupByName(self.name)
        off = not domain.isActive()
        if off and not (start or self._thorough):
            found = self.image()
            qemu_io(found.format, self.made.path if found.volume else str(found.path), commands)
            return
        if off:
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        try:
            alias = re.findall(r"<alias name='((?:virtio-disk|scsi|sata)[0-9-]+)'", domain.XMLDesc())
            device = next(name for name in alias if name.startswith("virtio") or "-" in name)
            device = f"/machine/peripheral/{device}{'/virtio-backend' if device.startswith('virtio') else ''}"
            for command in commands:
                said = libvirt_qemu.qemuMonitorCommand(
                    domain, f'qemu-io -d {device} "{command}"', libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
                )
                assert not said.strip(), (command, said)
        finally:
            if off:
                domain.destroy()

    def reference(self, name: str) -> CheckpointReference:
        return CheckpointReference(self.name, name)

    def names(self) -> set[str]:
        return {node.name for node in tree(self.context, self.name).checkpoints}

    def healthy(self) -> None:
        (found,) = doctor(self.context, self.name, repair=False)
        assert found.found == ()

    def files(self) -> dict[str, tuple[int, int, int]]:
        """Every file of the directory, by name, without the catalog's: what tells that nobody wrote it."""
        root = self.bench.directory
        paths = [path for path in root.rglob("*") if path.is_file() and "catalog" not in path.parts[len(root.parts) :]]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}

    def remove(self) -> None:
        self.catalog.close()
        self.bare.remove()


def reads(content: Content) -> list[str]:
    """The commands of qemu-io that find this content, and zeros beside it."""
    known: Content = {piece: 0 for piece in range(SIZE // PIECE) if piece < 8} | content
    return [f"read -q -P {pattern} {piece * PIECE} {PIECE}" for piece, pattern in known.items() if pattern is not None]


def qemu_io(format: str, path: str, commands: Sequence[str]) -> None:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", "-f", format, *words, path], capture_output=True, text=True, check=False, timeout=60)
    assert not (done.stdout + done.stderr).strip(), done


def file_holds(path: Path, content: Content) -> None:
    qemu_io("qcow2", str(path), reads(content))
