"""A VM whose definition and images a test makes itself."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from lab.bare import Bare, directory
from tests.host import Quiesce

SIZE = "8M"


def disk(path: Path | str, more: str = "", inside: str = "", target: str = "vda", format: str = "qcow2") -> str:
    return (
        f"<disk type='file'><driver name='qemu' type='{format}'/><source file='{path}'>{inside}</source>{more}"
        f"<target dev='{target}' bus='virtio'/></disk>"
    )


def create(path: Path, *options: str, format: str = "qcow2") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", format, *options, path, SIZE], check=True)
    return path


def fill(path: Path, pattern: int = 0x5A) -> None:
    subprocess.run(["qemu-io", "-c", f"write -q -P {pattern} 0 64k", path], check=True)


@pytest.fixture
def place() -> Iterator[Path]:
    with directory() as path:
        path.chmod(0o755)
        yield path


Make = Callable[..., Bare]


@pytest.fixture
def own_vm(place: Path) -> Iterator[Make]:
    """Makes the VM of a test. `disks`, `devices`: XML; `rest`: below <domain>."""
    made: list[Bare] = []

    def make(disks: str, devices: str = "", rest: str = "", name: str = "") -> Bare:
        bare = Bare(place, name=name, disk_xml=disks, disks=0, start=False)
        made.append(bare)
        xml = bare.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        xml = xml.replace("</devices>", f"{devices}</devices>{rest}")
        bare.domain = bare.connection.defineXML(xml)
        return bare

    yield make
    for bare in made:
        with contextlib.suppress(libvirt.libvirtError):
            bare.domain.destroy()
        with contextlib.suppress(libvirt.libvirtError):
            bare.domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_TPM | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            )
        bare.connection.close()


def power(bare: Bare, *, running: bool) -> None:
    """Starts the VM, its processor stopped, or stops it."""
    if bool(bare.domain.isActive()) is not running:
        if running:
            bare.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        else:
            bare.domain.destroy()


def definition(bare: Bare) -> str:
    return str(bare.connection.lookupByUUIDString(str(bare.domain.UUIDString())).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def take(quiesce: Quiesce, bare: Bare, name: str) -> None:
    quiesce("checkpoint", bare.domain.UUIDString(), "--name", name, "--require", "crash")


def refused(quiesce: Quiesce, bare: Bare, says: str) -> None:
    """A checkpoint is refused by name, and nothing is changed."""
    before, files = definition(bare), sorted(bare.directory.iterdir())
    assert says in quiesce.fails("checkpoint", bare.name, "--name", "x", "--require", "crash", code=4)
    assert (definition(bare), sorted(bare.directory.iterdir())) == (before, files)
    assert quiesce("tree", bare.name)["checkpoints"] == []


def image_of(bare: Bare) -> str:
    return definition(bare).split("<source file='")[1].split("'")[0]
