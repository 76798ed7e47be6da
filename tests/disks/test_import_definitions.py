"""Definitions that a stranger made, imported for real: what libvirt would do for them, and the places of the new VM."""

from __future__ import annotations

import shutil
import uuid

import libvirt
import pytest

from lab.machine import TPM_STATES, new_name
from quiesce.catalog import exported
from quiesce.hypervisor import domain_xml
from quiesce.model.errors import RefusedError
from tests.definitions import ORDINARY, definition_of
from tests.disks.importing import Target
from tests.host import Quiesce
from tests.strangers import CAPACITY, Stranger, qemu_img

# -- definitions


REFUSED = {
    "hostdev": "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>",
    "filesystem": "<filesystem type='mount'><source dir='/'/><target dir='root'/></filesystem>",
    "serial": "<serial type='tcp'><source mode='connect' host='127.0.0.1' service='22'/></serial>",
    "channel": "<channel type='unix'><source mode='connect' path='/run/x'/><target type='virtio' name='x'/></channel>",
    "interface": "<interface type='ethernet'><script path='{script}'/></interface>",
    "shmem": "<shmem name='x'/>",
    "rng": "<rng model='virtio'><backend model='random'>{secret}</backend></rng>",
    "tpm": "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
    "disk": "<disk type='file' device='cdrom'><source file='{secret}'/><target dev='sdb' bus='sata'/></disk>",
    "graphics": "<graphics type='spice'><gl enable='yes' rendernode='/dev/dri/renderD128'/></graphics>",
    "audio": "<audio id='2' type='file'><output path='{secret}'/></audio>",
}


@pytest.mark.parametrize("element", REFUSED)
def test_what_would_reach_the_host(element: str, target: Target, stranger: Stranger) -> None:
    """Broken: whoever sends an export would get files, devices or sockets of the host, or have a program run."""
    stranger.put(REFUSED[element].format(secret=target.secret, script="/bin/true"))
    target.refuses(stranger, rf"refuses: .*{element}")


def test_what_would_reach_the_host_outside_the_devices(target: Target, stranger: Stranger) -> None:
    """Broken: libvirt would give a file of the host to the guest, confine QEMU less, or add to its command line."""
    honest = stranger.definition
    for element, where, name in (
        (f"<kernel>{target.secret}</kernel>", "</os>", "kernel"),
        (f"<initrd>{target.secret}</initrd>", "</os>", "initrd"),
        (f"<loader readonly='yes' type='rom'>{target.secret}</loader>", "</os>", "loader"),
        (f"<acpi><table type='slic'>{target.secret}</table></acpi>", "</os>", "acpi"),
        ("<seclabel type='none'/>", "</domain>", "seclabel"),
        (f"<sysinfo type='fwcfg'><entry name='opt/x' file='{target.secret}'/></sysinfo>", "</domain>", "sysinfo"),
        (
            "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-S'/></q:commandline>",
            "</domain>",
            "qemu:commandline",
        ),
    ):
        stranger.definition = honest
        stranger.put(element, where)
        target.refuses(stranger, rf"refuses: {name}")


def test_what_an_administrator_accepts(target: Target, stranger: Stranger) -> None:
    """Broken: a VM with a shared directory could not be moved to another host."""
    stranger.put(REFUSED["filesystem"])
    stranger.put(REFUSED["serial"])
    target.refuses(stranger, "refuses: serial", accept=["filesystem"])
    with target.imported(stranger, accept=["filesystem", "serial"]) as vm:
        assert "<filesystem" in target.definition(vm)
    target.refuses(stranger, "cannot be accepted", accept=["devices"])


def test_an_emulator_of_the_definition_is_not_run(target: Target, stranger: Stranger) -> None:
    """Broken: libvirt would run a stranger's program when it defines the VM."""
    marker, program = target.path / "marker", target.path / "emulator"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    target.path.chmod(0o777)
    stranger.put(f"<emulator>{program}</emulator>")
    with target.imported(stranger) as vm:
        assert str(program) not in target.definition(vm)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        "<domain",
        "",
        "<volume/>",
        "<domain type='qemu'><name>x</name></domain>",
        "<!DOCTYPE d [<!ENTITY a 'aa'><!ENTITY b '&a;&a;&a;'>]><domain><name>&b;</name><uuid/><devices/></domain>",
        "<domain>" + "<a>" * 100 + "</a>" * 100 + "</domain>",
        "<domain>" + "<a/>" * 30_000 + "</domain>",
        "\udcff",
    ],
    ids=range(8),
)
def test_a_definition_that_is_none(content: str, target: Target, stranger: Stranger) -> None:
    """Broken: a user would see a traceback, or wait for gigabytes of entities."""
    stranger.definition = content
    stranger.sign()
    target.refuses(stranger, "definition")


def test_a_manifest_or_definition_that_is_too_large(target: Target, stranger: Stranger) -> None:
    """Broken: the import would fill the memory of the host."""
    with (stranger.place / exported.NAME).open("ab") as file:
        file.truncate(exported.MAX_BYTES + 1)
    target.refuses(stranger, "has more than")


# -- places of the new VM


def test_a_tpm_has_a_place_of_its_own(target: Target) -> None:
    """Broken: root would write a stranger's text into a directory of the host, and `virsh undefine` remove what is there."""
    stranger = Stranger(target.path / "export", kind="windows")
    place = target.path / "place"
    place.mkdir()
    (place / "diary").write_text("keep")
    (stranger.place / "tpm.state").write_bytes(b"the stranger's")
    (stranger.place / "nvram.fd").write_bytes(bytes(540672))
    stranger.tpm, stranger.nvram = "tpm.state", "nvram.fd"
    stranger.definition = stranger.definition.replace(
        "<backend type='emulator' version='2.0'/>",
        f"<backend type='emulator' version='2.0'><source type='dir' path='{place}'/></backend>",
    ).replace("</os>", f"<nvram>{place}/diary</nvram></os>")
    stranger.sign()
    with target.imported(stranger) as vm:
        state = TPM_STATES / vm.uuid / "tpm2" / "tpm2-00.permall"
        assert state.read_bytes() == b"the stranger's"
        assert domain_xml.nvram(target.definition(vm)) == f"{target.to}/{vm.vm}.nvram.fd"
    assert [path.name for path in place.iterdir()] == ["diary"]
    assert (place / "diary").read_text() == "keep"


def test_the_state_of_a_tpm_that_is_there_stays(target: Target) -> None:
    """Broken: the keys of a VM that was undefined would be lost with `--same`."""
    stranger = Stranger(target.path / "export", kind="windows")
    (stranger.place / "tpm.state").write_bytes(b"new")
    stranger.tpm = "tpm.state"
    known = str(uuid.uuid4())
    stranger.definition = definition_of("windows", name=new_name(), uuid=known, path=str(stranger.image))
    stranger.sign()
    place = TPM_STATES / known / "tpm2"
    place.mkdir(parents=True)
    try:
        (place / "tpm2-00.permall").write_bytes(b"old")
        target.refuses(stranger, "has the state of a TPM already", RefusedError, same=True, name=None)
        assert (place / "tpm2-00.permall").read_bytes() == b"old"
    finally:
        shutil.rmtree(place.parent)


def test_an_import_that_fails_at_the_end_leaves_nothing(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: directories and the state of a TPM would be left of a VM that does not exist."""
    stranger = Stranger(target.path / "export", kind="windows")
    (stranger.place / "tpm.state").write_bytes(b"state")
    stranger.tpm = "tpm.state"
    stranger.sign()
    monkeypatch.setattr("quiesce.hypervisor.connection.Host.define", lambda *_: (_ for _ in ()).throw(RefusedError("no")))
    states = set(TPM_STATES.glob("*"))
    target.refuses(stranger, "no", RefusedError)
    assert set(TPM_STATES.glob("*")) == states


@pytest.mark.parametrize("kind", ORDINARY)
def test_a_clone_runs_beside_its_original(kind: str, target: Target) -> None:
    """Broken: the second VM would not start, for the port, the socket or the log of the first; or be refused after all was
    copied."""
    original, own = new_name(), target.path / "original.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(own), str(CAPACITY))
    first = str(uuid.uuid4())
    xml = definition_of(kind, name=original, uuid=first, path=str(own)).replace("/var/log/", f"{target.path}/")
    target.connection.defineXML(xml)
    try:
        stranger = Stranger(target.path / "export", kind=kind)
        whole = target.connection.lookupByUUIDString(first).XMLDesc(
            libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        )
        stranger.definition = domain_xml.exported(str(whole), sources={"vda": str(stranger.image)}, nvram=None)
        stranger.sign()
        target.start(first)
        with target.imported(stranger) as vm:
            target.start(vm.uuid)
            clone = target.definition(vm)
            assert str(own) not in clone
            assert "5977" not in clone
            assert f"{target.path}/{original}" not in clone
            assert f"console-of-{original}" not in clone
    finally:
        target.remove(first)


def test_the_command(target: Target, stranger: Stranger, quiesce: Quiesce) -> None:
    """Broken: a script could not tell a refused export from one that is damaged."""
    stranger.put(REFUSED["hostdev"])
    words = ("import", str(stranger.place), "--to", str(target.to), "--name", new_name())
    assert "--accept hostdev" in quiesce.fails(*words, code=2)
    assert "absolute path" in quiesce.fails("import", f"{stranger.place}/../export", *words[2:], code=2)
    assert "absolute path" in quiesce.fails(*words[:2], "--to", "/", *words[4:], code=2)
    assert not target.to.exists()
