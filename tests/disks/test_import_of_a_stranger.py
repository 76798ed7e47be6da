"""Exports that a stranger made, imported for real: images and names. Nothing on the host may change before all is checked."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from lab import victim
from lab.machine import TPM_STATES, new_name
from quiesce.catalog.exported import ExportedDisk
from quiesce.hypervisor import domain_xml
from quiesce.model.errors import QuiesceError, RefusedError
from quiesce.model.events import Event, PhaseFinished, PhaseStarted
from quiesce.model.grades import Consistency
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.doctor import doctor
from tests.disks.importing import Target
from tests.strangers import CAPACITY, Stranger, everything_below, qemu_img

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


def test_a_link_where_the_image_goes(target: Target, stranger: Stranger) -> None:
    """Broken: whoever may write to the directory could have root make or remove a file anywhere."""
    target.to.mkdir()
    name = new_name()
    for file in (f"{name}.vda.qcow2", f"{name}.nvram.fd"):
        (target.to / file).symlink_to(target.path / "elsewhere")
        target.refuses(stranger, "is a link", name=name)
        (target.to / file).unlink()


@pytest.mark.parametrize(("owner", "mode"), [(65534, 0o755), (0, 0o775), (0, 0o777)])
def test_a_directory_that_others_can_write_to(owner: int, mode: int, target: Target, stranger: Stranger) -> None:
    """Broken: libvirt makes an image and then opens it by its name, so root would write to wherever a link leads that somebody
    put there in between."""
    target.to.mkdir()
    os.chown(target.to, owner, -1)
    target.to.chmod(mode)
    target.refuses(stranger, "other users can put links into", kind=RefusedError)


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
