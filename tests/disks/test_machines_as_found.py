"""VMs and hosts as administrators have them: what a restore needs, and TPMs. From public reports."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from lab.bare import pool
from tests.disks.making import nbd_disk, pool_volume
from tests.disks.own_vm import create, definition, disk, image_of, power, refused, take
from tests.unit.hung_filesystem import hung

running = pytest.mark.parametrize("on", [True, False], ids=["running", "off"])


running = pytest.mark.parametrize("on", [True, False], ids=["running", "off"])


# -- what a restore needs


CD = "<target dev='sda' bus='sata'/><readonly/></disk>"
MEDIA = {
    "cdrom": f"<disk type='file' device='cdrom'>{{}}{CD}",
    "floppy": "<disk type='file' device='floppy'>{}<target dev='fda' bus='fdc'/></disk>",
    "volume": f"<disk type='volume' device='cdrom'>{{}}{CD}",
}


@pytest.mark.parametrize("kind", MEDIA)
def test_a_medium_that_was_thrown_away(place, own_vm, quiesce, kind):
    """Broken: the VM would be powered off, and not start. From a report; the brothers are a floppy, and a volume whose file was
    removed, which libvirt lists still."""
    image, media = create(place / "vda.qcow2"), place / "media"
    media.mkdir()
    medium = media / "install.iso"
    medium.write_bytes(bytes(1440 * 1024))
    source = (
        f"<source pool='{media.parent.name}-media' volume='install.iso'/>" if kind == "volume" else f"<source file='{medium}'/>"
    )
    with pool(media, f"{media.parent.name}-media"):
        bare = own_vm(disk(image), MEDIA[kind].format(source))
        power(bare, running=True)
        take(quiesce, bare, "a")
        bare.domain.updateDeviceFlags(
            MEDIA[kind].format("").replace("volume", "file"),
            libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE,
        )
        medium.unlink()
        finished = quiesce.run("restore", f"{bare.name}@a", "--start")
        assert finished.returncode == 0
        assert "install.iso is gone" in finished.stderr
        assert bare.domain.isActive()
        assert "install.iso" not in definition(bare)


def test_a_medium_on_a_storage_that_does_not_answer(place, own_vm, quiesce, tmp_path):
    """Broken: an ISO that was left in the drive, on a share that is gone, would keep the VM from being checkpointed and
    restored. A brother of the report of another VM's hanging storage."""
    with hung(tmp_path) as silent:
        drive = f"<disk type='file' device='cdrom'><source file='{silent}/install.iso'/>{CD}"
        bare = own_vm(disk(create(place / "vda.qcow2")), drive)
        take(quiesce, bare, "a")
        finished = quiesce.run("restore", f"{bare.name}@a", "--start")
        assert finished.returncode == 0
        assert "install.iso" in finished.stderr
        assert bare.domain.isActive()
        quiesce("delete", f"{bare.name}@*")


UNREACHED = {
    "address": "<graphics type='vnc' autoport='yes' listen='192.0.2.77'/>",
    "socket": "<serial type='unix'><source mode='bind' path='/nowhere-{name}/console'/></serial>",
    "cpu": "",
    "huge pages": "",
}
HUGE = "<memoryBacking><hugepages><page size='{size}' unit='KiB'/></hugepages></memoryBacking>"


@pytest.mark.parametrize("what", ["network", "bridge", "directory", *UNREACHED])
def test_a_restore_that_could_not_start_leaves_the_vm_running(place, own_vm, quiesce, what):
    """Broken: the VM would be off, with a definition that does not start. From a report of a network; the brothers are whatever
    else of the host may be gone."""
    image, shared = create(place / "vda.qcow2"), place / "shared"
    bare = own_vm(disk(image))
    shared.mkdir()
    name = f"q{os.getpid() % 10**6}"
    device = {
        "network": f"<interface type='network'><source network='{name}'/></interface>",
        "bridge": f"<interface type='bridge'><source bridge='{name}'/></interface>",
        "directory": f"<filesystem type='mount'><source dir='{shared}'/><target dir='x'/></filesystem>",
        **{each: text.format(name=name) for each, text in UNREACHED.items()},
    }[what]
    network = None
    if what == "network":
        network = bare.connection.networkDefineXML(f"<network><name>{name}</name></network>")
    xml = definition(bare)
    added = xml.replace("</devices>", f"{device}</devices>")
    if what == "cpu":
        added = re.sub("<cpu .*</cpu>", f"<cpu mode='custom'><model>{name}</model></cpu>", xml, flags=re.DOTALL)
    if what == "huge pages":
        added = xml.replace("<os>", f"{HUGE.format(size=2048)}<os>")
    bare.domain = bare.connection.defineXML(added)
    take(quiesce, bare, "a")
    bare.domain = bare.connection.defineXML(xml.replace("vda.qcow2", Path(image_of(bare)).name))
    if network:
        network.undefine()
    shutil.rmtree(shared)
    power(bare, running=True)
    before = definition(bare)
    error = quiesce.fails("restore", f"{bare.name}@a", "--start", code=4)
    assert {"directory": str(shared), "address": "192.0.2.77", "huge pages": "x 2048 KiB"}.get(what, name) in error
    assert bare.domain.isActive()
    assert definition(bare) == before


def test_a_port_that_another_program_has(place, own_vm, quiesce):
    """Broken: the VM would be off, and not start; or its own port be in its way."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        bare = own_vm(disk(create(place / "vda.qcow2")), f"<graphics type='vnc' autoport='no' port='{port}'/>")
        take(quiesce, bare, "a")
        other.listen()
        assert f"port 127.0.0.1:{port}, for its graphics is in use" in quiesce.fails(
            "restore", f"{bare.name}@a", "--start", code=4
        )
        assert str(port) in quiesce.run("restore", f"{bare.name}@a").stderr
    power(bare, running=True)
    quiesce("restore", f"{bare.name}@a", "--start")
    assert bare.domain.isActive()


def test_a_start_that_fails_says_how_to_get_back(place, own_vm, quiesce):
    """Broken: nobody would know where the state from before the restore is."""
    image = create(place / "vda.qcow2")
    bare = own_vm(disk(image))
    xml = definition(bare)
    too_much = "<memory unit='TiB'>900</memory><currentMemory unit='TiB'>900</currentMemory>"
    bare.domain = bare.connection.defineXML(xml.replace("<vcpu", f"{too_much}<vcpu", 1).replace("<memory unit='KiB'>65536</memory>", "").replace("<currentMemory unit='KiB'>65536</currentMemory>", ""))  # fmt: skip  # noqa: E501
    take(quiesce, bare, "a")
    current = Path(image_of(bare)).name
    bare.domain = bare.connection.defineXML(xml.replace("vda.qcow2", current))
    power(bare, running=True)
    error = quiesce.fails("restore", f"{bare.name}@a", "--start", code=8)
    assert f"quiesce restore '{bare.name}@before restore" in error
    safety = next(node["name"] for node in quiesce("tree", bare.name)["checkpoints"] if node["name"].startswith("before"))
    quiesce("restore", f"{bare.name}@{safety}", "--start")
    assert bare.domain.isActive()


# -- TPM


@pytest.mark.parametrize("version", ["1.2", "2.0"])
@pytest.mark.parametrize("where", ["libvirt's place", "dir", "file"])
def test_the_state_of_a_tpm_goes_back_with_the_disks(place, own_vm, quiesce, version, where):
    """Broken: a restored guest would not get its keys."""
    model = "tpm-tis" if version == "1.2" else "tpm-crb"
    path = place / "tpm"
    source = f"<source type='{where}' path='{path}'/>" if where in ("dir", "file") else ""
    if where == "file":
        shutil.chown(place, "tss")  # swtpm makes the file
    backend = f"<backend type='emulator' version='{version}'>{source}</backend>"
    bare = own_vm(disk(create(place / "vda.qcow2")), f"<tpm model='{model}'>{backend}</tpm>")
    power(bare, running=True)
    state = next(Path("/var/lib/libvirt/swtpm").glob(f"{bare.domain.UUIDString()}/*/*permall"), None) if not source else path
    state = next(path.glob("*permall")) if where == "dir" else state
    assert state
    take(quiesce, bare, "a")
    kept, rights = state.read_bytes(), state.stat()
    power(bare, running=False)
    state.write_bytes(kept[:-1] + b"x")
    quiesce("restore", f"{bare.name}@a")
    assert state.read_bytes() == kept
    assert (state.stat().st_uid, state.stat().st_mode) == (rights.st_uid, rights.st_mode)
    power(bare, running=True)
    (found,) = [node for node in quiesce("tree", bare.name)["checkpoints"] if node["name"] == "a"]
    assert not [text for text in found["warnings"] if "TPM" in text]


@running
def test_disks_that_no_checkpoint_has(place, own_vm, quiesce, bench, on):
    """Broken: libvirt would find no name for a snapshot of a disk that was left out, or of a medium. From a report of NBD; the
    brothers are a volume of a pool, and media that are no files."""
    volume = pool_volume("raw")(bench).xml.replace("'vda'", "'vdb'")
    medium = (
        nbd_disk(bench).xml.replace("device='disk'", "device='cdrom'").replace("<target dev='vda' bus='virtio'/></disk>", CD)
    )
    bare = own_vm(disk(create(place / "vda.qcow2")) + volume + medium)
    power(bare, running=on)
    for name in ("a", "b"):
        quiesce("checkpoint", bare.name, "--name", name, "--require", "crash", "--exclude", "vdb")
    quiesce("restore", f"{bare.name}@a", "--start")
    assert quiesce("delete", f"{bare.name}@*")["waiting"] == []
    power(bare, running=False)
    power(bare, running=True)


def test_a_panicked_vm_is_called_so(place, own_vm, quiesce):
    """Broken: a VM that libvirt keeps for a look at its memory would be taken for one that is off."""
    bare = own_vm(disk(create(place / "vda.qcow2")), "<panic model='isa'/>")
    xml = definition(bare).replace("<on_crash>destroy</on_crash>", "<on_crash>preserve</on_crash>")
    bare.domain = bare.connection.defineXML(xml)
    bare.domain.create()
    libvirt_qemu.qemuMonitorCommand(bare.domain, "o /b 0x505 1", libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
    deadline = time.monotonic() + 20
    while bare.domain.state()[0] != libvirt.VIR_DOMAIN_CRASHED:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (found,) = [each for each in quiesce("vms") if each["name"] == bare.name]
    assert found["state"] == "panicked"
    refused(quiesce, bare, "panicked")
    assert "panicked" in quiesce.fails("start", bare.name, code=4)
    assert bare.domain.state()[0] == libvirt.VIR_DOMAIN_CRASHED
