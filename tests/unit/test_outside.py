"""hypervisor/outside.py: what of a VM is in no disk image is said."""

from __future__ import annotations

import pytest

from quiesce.hypervisor.outside import outside
from quiesce.model.grades import Consistency
from tests.unit.world import World

QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def domain(devices: str = "", more: str = "", arguments: str = "") -> str:
    words = "".join(f"<qemu:arg value='{word}'/>" for word in arguments.split())
    line = f"<qemu:commandline>{words}</qemu:commandline>" if words else ""
    return f"<domain type='kvm' {QEMU}><name>web1</name>{more}<devices>{devices}</devices>{line}</domain>"


def hostdev(kind: str, source: str) -> str:
    return domain(f"<hostdev mode='subsystem' type='{kind}' managed='yes'><source>{source}</source></hostdev>")


PCI = "<address domain='0x0000' bus='0x01' slot='0x00' function='0x1'/>"
SAID = {
    "an NVMe drive": (hostdev("pci", PCI), "the host's PCI device 0000:01:00.1"),
    "a USB stick by its address": (hostdev("usb", "<address bus='1' device='4'/>"), "the host's USB device 1:4"),
    "a USB stick by its name": (
        hostdev("usb", "<vendor id='0x0781'/><product id='0x5567'/>"),
        "the host's USB device 0x0781:0x5567",
    ),
    "a redirected USB stick": (domain("<redirdev bus='usb' type='spicevmc'/>"), "redirected USB device"),
    "9p": (
        domain("<filesystem type='mount'><source dir='/srv'/><target dir='data'/></filesystem>"),
        "directory /srv of the host",
    ),
    "virtiofs with a socket": (
        domain(
            "<filesystem type='mount'><driver type='virtiofs'/><source socket='/run/v.sock'/><target dir='d'/></filesystem>"
        ),
        "/run/v.sock",
    ),
    "shmem": (domain("<shmem name='ring'><model type='ivshmem-plain'/></shmem>"), "the memory 'ring'"),
    "nvdimm": (
        domain("<memory model='nvdimm'><source><path>/srv/pmem</path></source></memory>"),
        "persistent memory /srv/pmem",
    ),
    "-drive": (domain(arguments="-drive file=/x/extra.raw,if=none,id=x"), "the drive 'file=/x/extra.raw,if=none,id=x'"),
    "--blockdev": (domain(arguments="--blockdev driver=file,filename=/x"), "the drive 'driver=file,filename=/x'"),
    "-device": (domain(arguments="-device vfio-pci,host=01:00.0"), "'vfio-pci,host=01:00.0'"),
}


@pytest.mark.parametrize("kind", SAID)
def test_what_is_in_no_image_is_said(kind):
    """Broken: somebody would believe that a restore brings back what is there."""
    xml, text = SAID[kind]
    (said,) = outside(xml)
    assert text in said
    assert "is not in the checkpoint" in said


@pytest.mark.parametrize(
    "xml",
    [
        domain(),
        domain("<disk type='file' device='disk'><source file='/i/vda'/><target dev='vda'/></disk>"),
        domain(more="<os><nvram>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram></os>"),
        domain(more="<os><nvram type='file'><source file='/n/web1.fd'/></nvram></os>"),
        domain("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"),
        domain("<memory model='dimm'><target><size>1</size></target></memory>"),
        domain(arguments="-version"),
        domain(arguments="-drive"),
        hostdev("mdev", "<address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/>"),
    ],
    ids=["nothing", "a disk", "NVRAM", "NVRAM in a file", "an emulated TPM", "memory", "-version", "no drive", "a virtual GPU"],
)
def test_what_is_in_the_checkpoint_is_not_said(xml):
    """Broken: a warning that is not true, with each checkpoint, teaches people not to read warnings."""
    assert outside(xml) == ()


def test_a_checkpoint_records_it(world: World, monkeypatch: pytest.MonkeyPatch):
    """Broken: whoever looks at the checkpoint a year later would not learn of it."""
    vm = world.vm()
    facts = vm.facts
    text = outside(SAID["9p"][0])
    monkeypatch.setattr(vm, "facts", lambda: type(facts())(**{**vars(facts()), "outside": text}))
    node = world.take(vm, required=Consistency.CRASH)
    assert set(text) <= set(node.warnings)
    assert set(text) <= set(world.warnings())
