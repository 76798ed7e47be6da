"""VMs without a guest: for tests that need real disks and a real QEMU only."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt

from lab import cache
from lab.emulation import kvm_works
from lab.machine import URI, new_name, owned


class Bare:
    """A VM without a guest operating system: its disks are empty."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "",
        disk_xml: str | None = None,
        machine_xml: str = "",
        disks: int = 1,
        size: int = 16 * 1024 * 1024,
        start: bool = True,
    ) -> None:
        self.name = name or directory.name
        self.directory = directory
        self.connection = libvirt.open(URI)
        self._targets = ["vda", "vdb"][:disks]
        self._size = size
        self._uuid = uuid.uuid4()
        self._disk_xml = disk_xml
        self._machine_xml = machine_xml
        self.make_disks()
        subprocess.run(["qemu-img", "create", "-q", "-f", "raw", directory / "disk.raw", "8M"], check=True)
        self.domain = self.define()
        if start:
            self.domain.create()

    def make_disks(self) -> None:
        for target in self._targets:
            path = self.directory / f"{target}.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(self._size)], check=True)

    def define(self) -> libvirt.virDomain:
        disk_xml = self._disk_xml or "".join(
            f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{self.directory}/{target}.qcow2'/>"
            f"<target dev='{target}' bus='virtio'/></disk>"
            for target in self._targets
        )
        return self.connection.defineXML(f"""
            <domain type='{"kvm" if kvm_works() else "qemu"}'><name>{self.name}</name>
            <uuid>{self._uuid}</uuid><memory unit='MiB'>64</memory>{self._machine_xml}
            <os><type machine='q35'>hvm</type></os><devices>{disk_xml}
            <controller type='scsi' model='virtio-scsi'/><controller type='usb' model='none'/>
            <memballoon model='none'/></devices></domain>""")

    def reconnect(self) -> None:
        """Connects again after libvirtd was restarted."""
        self.connection = libvirt.open(URI)
        self.domain = self.connection.lookupByName(self.name)

    def remove(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):  # not running
            self.domain.destroy()
        self.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
        self.connection.close()


def restart_libvirt() -> None:
    """Kills libvirtd and starts it again. Connections are broken then."""
    os.kill(int(Path("/run/libvirtd.pid").read_text()), signal.SIGKILL)
    time.sleep(0.2)
    subprocess.run(["script/bootstrap"], check=True, stderr=subprocess.DEVNULL)


@contextmanager
def pool(path: Path, name: str = "") -> Iterator[None]:
    """Makes the directory a storage pool during the block, as an administrator would: most images are in a pool."""
    connection = libvirt.open(URI)
    try:
        xml = f"<pool type='dir'><name>{name or path.name}</name><target><path>{path}</path></target></pool>"
        found = connection.storagePoolCreateXML(xml)
        try:
            yield
        finally:
            found.destroy()
    finally:
        connection.close()


@contextmanager
def directory() -> Iterator[Path]:
    """A directory among those of the machines, and named like them, so that the next run removes it if this one is killed."""
    path = cache.root() / "machines" / new_name()
    path.mkdir(parents=True)
    with owned(path):
        try:
            yield path
        finally:
            shutil.rmtree(path)
