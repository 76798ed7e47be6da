"""model/coverage.py, and what becomes of a checkpoint that does not have all files of an application."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.guests import scripted
from quiesce.model.coverage import HostDisk, broken, covered, not_whole, why_absent
from quiesce.model.errors import ConsistencyError
from quiesce.model.grades import Consistency, Grade
from quiesce.model.reports import Filesystem, FreezeState, GuestDisk, WriterReport
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.writers import writers
from tests.unit import reports
from tests.unit.fake_host import FakeVm

GIB = 1 << 30
VDA, VDB, VDC = GuestDisk("vda", GIB), GuestDisk("vdb", 2 * GIB), GuestDisk("vdc", 3 * GIB)


def host(left_out: str = "", **serials: str) -> list[HostDisk]:
    sizes = {"vda": GIB, "vdb": 2 * GIB, "vdc": 3 * GIB}
    return [HostDisk(name, size, serials.get(name, ""), name not in left_out.split()) for name, size in sizes.items()]


def filesystem(mountpoint: str, *disks: GuestDisk, state: FreezeState = FreezeState.FROZEN) -> Filesystem:
    return Filesystem(mountpoint, "ext4", "/dev/x", state, disks=disks or None)


def writer(*filesystems: str, **others: object) -> WriterReport:
    return replace(reports.postgresql(), filesystems=filesystems or None, **others)


def test_a_disk_is_recognised_by_its_size_whatever_the_guest_calls_it():
    """Broken: after a hot-plug the guest's names are not libvirt's, and the wrong disk would count as left out."""
    assert why_absent(replace(VDB, name="sdq"), host()) == ""
    assert why_absent(replace(VDB, name="vda"), host("vdb")) == "disk vdb, which is left out"
    assert why_absent(VDA, host("vdb")) == ""


def test_sizes_are_compared_in_the_guests_sectors():
    """Broken: an image whose size is no multiple of 512 bytes would be no disk of the VM."""
    assert why_absent(GuestDisk("vda", 1024), [HostDisk("vda", 1000, "", included=True)]) == ""


def test_disks_of_one_size_are_told_apart_by_their_serials_and_else_not_at_all():
    """Broken: the label would be a guess."""
    two = [HostDisk("vda", GIB, "", included=True), HostDisk("vdb", GIB, "", included=False)]
    assert "may be vdb, which is left out (give the VM's disks a <serial>" in why_absent(VDA, two)
    assert why_absent(VDA, [replace(disk, included=True) for disk in two]) == ""
    long = "0123456789-0123456789-too-long"
    named = [replace(two[0], serial=long), replace(two[1], serial="DATA")]
    assert why_absent(GuestDisk("vda", GIB, long[:20]), named) == ""
    assert why_absent(GuestDisk("vda", GIB, "DATA"), named) == "disk vdb, which is left out"
    assert "may be vdb" in why_absent(VDA, named)  # a bus that shows no serial


def test_a_serial_that_qemu_made_up_is_none_of_ours():
    """Broken: every SATA disk (QM00001) would be unknown to libvirt."""
    assert why_absent(replace(VDB, serial="QM00003"), host()) == ""
    assert why_absent(replace(VDB, serial="QM00003"), host("vdb")) == "disk vdb, which is left out"


def test_a_disk_that_libvirt_does_not_list_is_in_no_checkpoint():
    """Broken: a database on an NVMe drive that was passed through would be called application-consistent."""
    assert "libvirt does not list" in why_absent(GuestDisk("nvme0n1", 7 * GIB, "S3RIAL"), host())
    assert "libvirt does not list" in why_absent(GuestDisk("nvme0n1", 7 * GIB), host())


def test_which_filesystems_are_not_whole():
    """Broken: a volume group over a disk that is left out would be restored without half of its blocks."""
    found = [
        filesystem("/", VDA),
        filesystem("/srv", VDB),
        filesystem("/lvm", VDA, VDB),
        filesystem("/both-out", VDB, VDC),
        filesystem("/tank"),
        filesystem("/media/cdrom", GuestDisk("sr0", 5), state=FreezeState.SKIPPED),
    ]
    absent = not_whole(found, host("vdb vdc"))
    assert absent == {
        "/srv": "on disk vdb, which is left out",
        "/lvm": "on disk vdb, which is left out",
        "/both-out": "on disk vdb, which is left out and on disk vdc, which is left out",
    }
    assert broken(found, host("vdb vdc")) == ["/lvm"]
    assert not_whole(found, host()) == {}
    assert broken(found, host()) == []


@pytest.mark.parametrize(
    ("report", "grade"),
    [
        (writer("/"), Grade.CLEAN),
        (writer("/", "/srv"), Grade.CRASH),
        (writer("/srv"), Grade.CRASH),
        (writer(), Grade.CLEAN),
        (writer("/srv", grade=Grade.NIL_REDO), Grade.CRASH),
        (writer("/srv", stateless=True), Grade.CLEAN),
        (writer("/srv", grade=Grade.REFUSED, reason="down"), Grade.REFUSED),
    ],
)
def test_an_application_is_worth_what_the_image_has_of_it(report, grade):
    """Broken: a cluster without one of its tablespaces would be called clean."""
    [judged] = covered([report], {"/srv": "on disk vdb, which is left out"})
    assert judged.grade is grade
    if grade is Grade.CRASH:
        assert judged.reason == "the checkpoint does not have all its files: /srv is on disk vdb, which is left out"


# -- a whole checkpoint


@pytest.fixture
def tablespace(world, monkeypatch):
    """web1 has a cluster in / on vda, with a tablespace in /srv on vdb."""
    root = Filesystem("/", "ext4", "/dev/mapper/x", FreezeState.FREEZABLE, disks=(VDA, VDB))
    world.take(vm := world.vm(targets=("vda", "vdb")))
    monkeypatch.setattr(FakeVm, "capacity", lambda _, target: {"vda": GIB, "vdb": 2 * GIB}[target])
    monkeypatch.setattr(scripted, "ROOT", replace(root, mountpoint="/srv", disks=(VDB,)))
    world.guests["web1"].writers = (replace(scripted.writer("postgresql:17/main"), filesystems=("/srv",)),)
    return vm


def test_a_checkpoint_without_a_disk_of_a_cluster_is_refused_before_its_window(world, tablespace):
    """Broken: it would be kept as application-consistent, with a mere warning."""
    with pytest.raises(ConsistencyError) as error:
        checkpoint(world.context, "web1", name="b", exclude=("vdb",))
    assert "postgresql:17/main: the checkpoint does not have all its files: /srv is on disk vdb" in error.value.message
    assert world.names(tablespace) == ["a"]


@pytest.mark.parametrize("required", [Consistency.FILESYSTEM, Consistency.CRASH])
def test_where_less_is_enough_the_label_says_what_it_is_worth(required, world, tablespace):
    """Broken: the label of a kept checkpoint would lie."""
    node = checkpoint(world.context, "web1", name="b", exclude=("vdb",), required=required)
    assert (node.consistency, node.writers[0].grade) == (Consistency.FILESYSTEM, Grade.CRASH)
    assert "the checkpoint does not have /srv: it is on disk vdb, which is left out" in node.warnings
    whole = checkpoint(world.context, "web1", name="c")
    assert whole.consistency is Consistency.APPLICATION


def test_a_filesystem_of_which_a_part_is_missing_is_worth_no_label(world, tablespace, monkeypatch):
    """Broken: half a volume group would be called filesystem-consistent."""
    monkeypatch.setattr(scripted, "ROOT", replace(scripted.ROOT, disks=(VDA, VDB)))
    with pytest.raises(ConsistencyError, match="a part of /srv only"):
        checkpoint(world.context, "web1", name="b", exclude=("vdb",), required=Consistency.FILESYSTEM)
    node = checkpoint(world.context, "web1", name="b", exclude=("vdb",), required=Consistency.CRASH)
    assert node.consistency is Consistency.CRASH


def test_what_the_writers_verb_expects_knows_of_disks_that_are_left_out(world, tablespace):
    """Broken: `quiesce writers` would promise a label that no checkpoint gets."""
    assert writers(world.context, "web1").expected is Consistency.APPLICATION
    world.catalog.settings.put(tablespace.key, replace(world.catalog.settings.get(tablespace.key), exclude=("vdb",)))
    assert writers(world.context, "web1").expected is Consistency.FILESYSTEM
