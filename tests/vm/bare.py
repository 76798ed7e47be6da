"""Domains that run no guest at all: for whatever needs real disks and a real QEMU, and nothing in it."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt

from lab import cache
from lab.machine import URI, kvm_works, new_name


class Bare:
    """A domain that runs no guest at all, for refusals that come before any guest is asked."""

    def __init__(
        self, directory: Path, *, name: str = "", disk_xml: str | None = None, disks: int = 1, start: bool = True
    ) -> None:
        self.name = name or directory.name
        self.directory = directory
        self.connection = libvirt.open(URI)
        targets = ["vda", "vdb"][:disks]
        for target in targets:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", directory / f"{target}.qcow2", "16M"], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "raw", directory / "disk.raw", "8M"], check=True)
        disk_xml = disk_xml or "".join(
            f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{directory}/{target}.qcow2'/>"
            f"<target dev='{target}' bus='virtio'/></disk>"
            for target in targets
        )
        self.domain = self.connection.defineXML(f"""
            <domain type='{"kvm" if kvm_works() else "qemu"}'><name>{self.name}</name><memory unit='MiB'>64</memory>
            <os><type machine='q35'>hvm</type></os><devices>{disk_xml}
            <controller type='scsi' model='virtio-scsi'/><controller type='usb' model='none'/>
            <memballoon model='none'/></devices></domain>""")
        if start:
            self.domain.create()

    def remove(self) -> None:
        if self.domain.isActive():
            self.domain.destroy()
        self.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
        self.connection.close()


@contextmanager
def directory() -> Iterator[Path]:
    """Named like a machine and below its directory, so that what a killed run leaves is found and removed."""
    path = cache.root() / "machines" / new_name()
    path.mkdir(parents=True)
    with (path / "owner.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            shutil.rmtree(path)
