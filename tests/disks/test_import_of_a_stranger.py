"""Exports that a stranger made, imported for real: nothing on the host may change before all of the export is checked."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import struct
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from lab import victim
from lab.bare import directory
from lab.machine import TPM_STATES, URI, new_name
from quiesce.catalog import exported
from quiesce.catalog.exported import ExportedDisk
from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.hypervisor import domain_xml
from quiesce.model.errors import QuiesceError, RefusedError, UsageError
from quiesce.model.events import Event, PhaseFinished, PhaseStarted
from quiesce.model.grades import Consistency
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.doctor import doctor
from quiesce.operations.import_ import Imported, import_vm
from tests.definitions import ORDINARY, definition_of
from tests.host import Quiesce
from tests.strangers import CAPACITY, Stranger, everything_below, qemu_img


class Target:
    """A host on which exports are imported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.to = path / "to"
        self.secret = path / "secret"
        self.secret.write_bytes(b"the password" + bytes(4084))
        self.secret.chmod(0o600)
        self.heard: Callable[[Event], None] = lambda _: None
        self.catalog = Catalog(f"sqlite:///{path}/catalog/catalog.db")
        self.context = Context(URI, self.catalog, lambda event: self.heard(event))
        self.connection = libvirt.open(URI)

    def import_(self, stranger: Stranger, **words: object) -> Imported:
        options: dict[str, object] = {"to": str(self.to), "name": new_name(), **words}
        return import_vm(self.context, str(stranger.place), **options)  # type: ignore[arg-type]

    def refuses(self, stranger: Stranger, match: str, kind: type[QuiesceError] = UsageError, **words: object) -> None:
        """The import fails, and all on the host is as it was."""
        before, vms = everything_below(self.path), self._vms()
        with pytest.raises(kind, match=match):
            self.import_(stranger, **words)
        after = everything_below(self.path)
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        assert {path for path in changed if "/catalog" not in path} == set()
        assert self._vms() == vms
        assert [found for each in doctor(self.context, None, repair=False) for found in each.found] == []

    def _vms(self) -> list[str]:
        return sorted(domain.name() for domain in self.connection.listAllDomains())

    def definition(self, vm: Imported) -> str:
        return str(self.connection.lookupByUUIDString(vm.uuid).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    @contextlib.contextmanager
    def imported(self, stranger: Stranger, **words: object) -> Iterator[Imported]:
        vm = self.import_(stranger, **words)
        try:
            yield vm
        finally:
            self.remove(vm.uuid)

    def remove(self, vm_uuid: str) -> None:
        domain = self.connection.lookupByUUIDString(vm_uuid)
        with contextlib.suppress(libvirt.libvirtError):
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_TPM)

    def start(self, vm_uuid: str) -> None:
        self.connection.lookupByUUIDString(vm_uuid).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)


@pytest.fixture
def target() -> Iterator[Target]:
    with directory() as path:
        target = Target(path)
        yield target
        target.catalog.close()
        target.connection.close()


@pytest.fixture
def stranger(target: Target) -> Stranger:
    return Stranger(target.path / "export")


# -- images


IMAGES = {
    "a backing file": lambda secret: ("-b", secret, "-F", "raw"),
    "a backing file, as JSON": lambda secret: (
        "-b",
        "json:" + json.dumps({"driver": "raw", "file.filename": secret}),
        "-F",
        "raw",
    ),
    "a backing file on the network": lambda _: ("-u", "-b", "nbd://127.0.0.1:1/secret", "-F", "raw"),
    "an external data file": lambda secret: ("-o", f"data_file={secret},data_file_raw=on"),
    "extended L2 entries": lambda _: ("-o", "extended_l2=on"),
    "version 2": lambda _: ("-o", "compat=0.10"),
}


@pytest.mark.parametrize("what", IMAGES)
def test_an_image_that_reads_something_else(what: str, target: Target, stranger: Stranger) -> None:
    """Broken: the new VM's disk would hold a file that only root may read, and libvirt give it to QEMU's user for good."""
    copy = target.path / "as-made"
    shutil.copy(target.secret, copy)  # qemu-img makes the data file anew
    stranger.make_image(*IMAGES[what](str(target.secret)))
    shutil.copy(copy, target.secret)
    stranger.sign()
    target.refuses(stranger, "data file" if "data" in what else what.partition(",")[0].partition(" on ")[0])


def test_an_encrypted_image_and_snapshots_and_bitmaps(target: Target, stranger: Stranger) -> None:
    """Broken: an import would take over what quiesce never exports, and what QEMU acts on."""
    qemu_img("snapshot", "-c", "one", str(stranger.image))
    stranger.sign()
    target.refuses(stranger, "internal snapshots")
    stranger.make_image()
    qemu_img("bitmap", "--add", str(stranger.image), "one")
    stranger.sign()
    target.refuses(stranger, "features")
    stranger.make_image("--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s")
    stranger.sign()
    target.refuses(stranger, "encrypted")


def test_an_image_of_another_size_than_the_manifest_says(target: Target, stranger: Stranger) -> None:
    """Broken: some megabytes would become a disk of a pebibyte, in minutes and gigabytes."""
    for capacity, said in ((2**50, CAPACITY), (2**50, 2**50), (2 * CAPACITY, CAPACITY)):
        with stranger.image.open("r+b") as file:
            file.seek(24)
            file.write(struct.pack(">Q", capacity))
        stranger.disks = [ExportedDisk("vda", "vda.qcow2", said)]
        stranger.sign()
        target.refuses(stranger, "capacity|impossible size")


def test_an_image_that_is_a_link(target: Target, stranger: Stranger) -> None:
    """Broken: a file of the host would be copied for whoever knows its checksum."""
    elsewhere = target.path / "elsewhere.qcow2"
    shutil.move(stranger.image, elsewhere)
    stranger.image.symlink_to(elsewhere)
    stranger.sign()
    target.refuses(stranger, "is a link")


@pytest.mark.parametrize("when", ["checksum of vda.qcow2", "copy vda"])
def test_an_image_that_is_swapped_meanwhile(when: str, target: Target, stranger: Stranger) -> None:
    """Broken: the VM would have a disk that nobody has checked."""
    other = target.path / "other.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", str(target.secret), "-F", "raw", str(other), str(CAPACITY))

    def swap(event: Event) -> None:
        if event == PhaseStarted(when) or (isinstance(event, PhaseFinished) and event.phase == when):
            shutil.copy(other, stranger.image)

    target.heard = swap
    before = target.secret.stat()
    with pytest.raises(QuiesceError, match="is damaged"):
        target.import_(stranger)
    assert not target.to.exists()
    assert target.secret.stat().st_uid == before.st_uid


def test_a_good_export_stays_as_it_is(target: Target, stranger: Stranger) -> None:
    """Broken: whoever made the export could not read it any more."""
    before = everything_below(stranger.place)
    with target.imported(stranger, start=True) as vm:
        assert everything_below(stranger.place) == before
        (disk,) = domain_xml.disks(target.definition(vm))
        assert disk.path == f"{target.to}/{vm.vm}.vda.qcow2"
    assert everything_below(stranger.place) == before
    assert (target.to / f"{vm.vm}.vda.qcow2").read_bytes() == stranger.image.read_bytes()


# -- names


def test_names_that_lead_elsewhere(target: Target, stranger: Stranger) -> None:
    """Broken: another VM's image would be written over, and then removed."""
    (target.path / "victim").mkdir()
    victim = target.path / "victim" / "db1.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(victim), "1M")
    honest = stranger.definition
    for name, where in (("../victim/db1.qcow2", "vda"), ("../victim/.", "vda"), ("..", "vda")):
        stranger.disks = [ExportedDisk(where, name, CAPACITY)]
        stranger.sign()
        target.refuses(stranger, "not the name of a file")
    for where in ("/victim/db1", "../victim/db1", "vda/../x", "", "vda\n"):
        stranger.disks = [ExportedDisk(where, "vda.qcow2", CAPACITY)]
        stranger.definition = honest.replace("dev='vda'", f"dev='{where}'")
        stranger.sign()
        target.refuses(stranger, "not the target of a disk", same=True, name=None)
    stranger.disks = [ExportedDisk("vda", "vda.qcow2", CAPACITY)]
    for old, new in (("web1", "../victim/db1"), ("web1", "a/b"), ("<uuid>0b5bd3e8", "<uuid>../0bd3e8")):
        stranger.definition = honest.replace(old, new)
        stranger.sign()
        target.refuses(stranger, "name must not|not a UUID", same=True, name=None)


@pytest.mark.parametrize(
    "name", ["a/b", "../x", "", "  ", ".", "..", "a\nb", "a\x1b[31m", " a", "x" * 241, "quiesce-merge-1", "\udcff"]
)
def test_names_that_no_vm_can_have(name: str, target: Target, stranger: Stranger) -> None:
    """Broken: the import would fail after it has copied everything, and leave an unfinished operation."""
    target.refuses(stranger, "a VM's name", name=name)


def test_the_longest_name(target: Target, stranger: Stranger) -> None:
    """Broken: a name that libvirt takes would fail for the name of a file that is made of it."""
    with target.imported(stranger, name=new_name().ljust(240, "x"), start=True) as vm:
        assert len(vm.vm) == 240
        (disk,) = domain_xml.disks(target.definition(vm))
        assert Path(str(disk.path)).is_file()


def test_a_vm_whose_name_is_long_is_checkpointed(target: Target, stranger: Stranger) -> None:
    """Broken: a VM that libvirt runs could have no checkpoint."""
    with target.imported(stranger, name=new_name().ljust(235, "x")) as vm:
        assert checkpoint(target.context, vm.vm, name="one", required=Consistency.CRASH).name == "one"


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


@pytest.mark.timeout(400)
def test_an_import_killed_at_every_step_leaves_nothing(target: Target) -> None:
    """Broken: disks, directories, and the state of a TPM would be left of a VM that does not exist."""
    stranger = Stranger(target.path / "export", kind="windows")
    (stranger.place / "tpm.state").write_bytes(b"state")
    (stranger.place / "nvram.fd").write_bytes(bytes(540672))
    stranger.tpm, stranger.nvram = "tpm.state", "nvram.fd"
    stranger.put("<nvram>/somewhere</nvram>", "</os>")
    states, name = set(TPM_STATES.glob("*")), new_name()
    words = ["import", str(stranger.place), "--to", str(target.to), "--name", name]
    for step in itertools.count():
        process = victim.start(words, f"{target.path}/catalog/catalog.db", target.path / "output", step)
        if victim.wait(process, 60) == 0:
            break
        doctor(target.context, None, repair=True)
        made = [domain.UUIDString() for domain in target.connection.listAllDomains() if domain.name() == name]
        for vm_uuid in made:  # killed after it was complete
            target.remove(vm_uuid)
            shutil.rmtree(target.to)
        assert not target.to.exists(), step
        assert set(TPM_STATES.glob("*")) == states, step
    assert step > 8
    target.remove(target.connection.lookupByName(name).UUIDString())
