"""operations/diff.py, model/configuration.py and applications/changes.py: what differs between two points of a VM."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from quiesce.applications.changes import ChangeKind, compare_writers
from quiesce.cli.main import app
from quiesce.disks.survey import Survey
from quiesce.model import configuration
from quiesce.model.chains import Image
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Filesystem, FreezeState, WriterReport
from quiesce.model.tree import Checkpoint, DiskImage, Tree
from quiesce.operations.diff import DiskSide, disk_differences, parted, writer_changes
from tests.samples import node

NAMES = ("web1@a", "web1")
DOMAIN = """
<domain type='kvm'>
  <name>web1</name>
  <genid>11111111-2222-3333-4444-555555555555</genid>
  <memory unit='KiB'>1048576</memory>
  <os><type>hvm</type><nvram template='/usr/share/vars.fd'>/images/web1.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/images/a.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <source file='/images/one.iso'/>
      <target dev='sda' bus='sata'/>
    </disk>
    <graphics type='vnc' port='-1' passwd='secret'/>
  </devices>
</domain>
"""


def survey(head: dict[str, str], merged: frozenset[str] = frozenset(), **images: tuple[int, str | None]) -> Survey:
    """Images by what they take and the one below each."""
    found = {name: Image(name, "qcow2", below, 1000, size, "1.0") for name, (size, below) in images.items()}
    return Survey(
        Tree.of([], None),
        found,
        {},
        head,
        frozenset(head.values()),
        frozenset(images),
        merged,
        frozenset(),
        frozenset(),
        frozenset(),
        dict.fromkeys(images, "here"),
    )


def at(key: str, image: str, **others: object) -> Checkpoint:
    return node(key, disks=(DiskImage("vda", image, "qcow2"),), **others)


def written(found: Survey, first: Checkpoint, second: Checkpoint | None) -> tuple[int | None, int | None]:
    (disk,) = disk_differences(found, first, second)
    assert disk.first
    assert disk.second
    return disk.first.written, disk.second.written


def test_on_one_line_all_is_written_on_one_side():
    """Broken: what was written before a checkpoint would count as a difference from it."""
    found = survey({"vda": "now"}, base=(900, None), a=(30, "base"), b=(20, "a"), now=(7, "b"))
    assert written(found, at("a", "a"), at("b", "b")) == (0, 20)
    assert written(found, at("a", "a"), None) == (0, 27)
    assert written(found, at("b", "b"), at("a", "a")) == (20, 0)
    assert written(found, at("a", "a"), at("a", "a")) == (0, 0)


def test_two_branches_are_counted_from_where_they_parted():
    """Broken: one branch's data, or those both have, would be missing or counted twice."""
    found = survey({"vda": "now"}, base=(900, None), a=(30, "base"), b=(20, "a"), c=(5, "a"), now=(7, "c"))
    assert written(found, at("b", "b"), at("c", "c")) == (20, 5)
    assert written(found, at("b", "b"), None) == (20, 12)


def test_a_deleted_checkpoint_between_is_counted_until_it_is_merged_and_after():
    """Broken: what was written before a deleted checkpoint would be forgotten, or merged data be counted twice."""
    before = survey({"vda": "now"}, a=(30, None), hidden=(20, "a"), b=(5, "hidden"), now=(7, "b"))
    assert written(before, at("a", "a"), at("b", "b")) == (0, 25)
    # `b` was committed into `hidden`, which is its image now; its old file stays for the VM that still lies on it.
    after = survey({"vda": "now"}, frozenset({"b"}), a=(30, None), hidden=(24, "a"), b=(5, "hidden"), now=(7, "b"))
    assert written(after, at("a", "a"), at("b", "hidden")) == (0, 24)
    assert written(after, at("b", "hidden"), None) == (0, 7)
    assert written(after, at("a", "a"), None) == (0, 31)


def test_another_disk_under_the_same_name_has_nothing_in_common():
    """Broken: a disk that was exchanged would look like one on which nothing was written."""
    found = survey({"vda": "other"}, a=(30, None), other=(900, None))
    (disk,) = disk_differences(found, at("a", "a"), None)
    assert (disk.common_image, disk.first, disk.second) == (None, DiskSide("a", 1000, 30), DiskSide("other", 1000, 900))


def test_what_cannot_be_read_is_not_known_and_not_nothing():
    """Broken: a lost image would count as 0 bytes."""
    found = survey({"vda": "now"}, now=(7, "lost"))
    (disk,) = disk_differences(found, at("a", "elsewhere"), None)
    assert (disk.first, disk.second) == (DiskSide("elsewhere", None, None), DiskSide("now", 1000, None))


def test_disks_that_only_one_side_has():
    """Broken: a disk that was left out of a checkpoint would be taken for one that was not there, or not be named at all."""
    found = survey({"vda": "now", "vdb": "data"}, a=(30, None), now=(7, "a"), data=(9, None))
    by_name = {disk.disk: disk for disk in disk_differences(found, at("a", "a", excluded=("vdb",)), None)}
    assert (by_name["vdb"].first, by_name["vdb"].second) == (None, DiskSide("data", 1000, 9))
    assert (by_name["vdb"].left_out, by_name["vda"].left_out) == (("first",), ())
    by_name = {disk.disk: disk for disk in disk_differences(found, at("a", "a"), at("b", "now"))}
    assert by_name.keys() == {"vda"}


def test_where_two_points_parted():
    """Broken: positions of two branches would be told apart by a number that means nothing."""
    root, gone = node("root"), node("gone", parent="root", hidden=True)
    a, b = node("a", parent="gone"), node("b", parent="gone")
    tree = Tree.of([root, gone, a, b, node("alone")], "b")
    assert parted(tree, "a", "root") == (root, True)
    assert parted(tree, "root", "a") == (root, True)
    assert parted(tree, "a", "b") == (gone, False)
    assert parted(tree, "b", None) == (b, True)
    assert parted(tree, "a", None) == (gone, False)
    assert parted(tree, "alone", None) == (None, False)
    assert parted(tree, "a", "a") == (a, True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/images/a.qcow2", "/images/b.qcow2"),
        ("/images/web1.fd", "/images/other.fd"),
        ("11111111", "99999999"),
        ("<genid>11111111-2222-3333-4444-555555555555</genid>\n", ""),
        ("<target dev='vda'", "<backingStore type='file'><source file='/x'/></backingStore><target dev='vda'"),
        ("<target dev='vda'", "<mirror type='file'><source file='/x'/></mirror><target dev='vda'"),
        ("  <memory", " <memory"),
    ],
    ids=["image", "UEFI variables", "generation", "a first generation", "backing store", "mirror", "layout"],
)
def test_what_quiesce_itself_changes_is_no_difference(old, new):
    """Broken: every diff would show image paths and generation IDs, and hide what the administrator changed."""
    assert old in DOMAIN
    assert configuration.changes(DOMAIN, DOMAIN.replace(old, new), names=NAMES) == ()


def test_what_somebody_changed_is_shown():
    """Broken: a VM restored with less memory, or another CD, would surprise its administrator."""
    after = DOMAIN.replace("1048576", "2097152").replace("one.iso", "two.iso")
    lines = configuration.changes(DOMAIN, after, names=NAMES)
    assert lines[:2] == ("--- web1@a", "+++ web1")
    changed = [line for line in lines[2:] if line[0] in "+-"]
    assert changed == [
        '-  <memory unit="KiB">1048576</memory>',
        '+  <memory unit="KiB">2097152</memory>',
        '-      <source file="/images/one.iso" />',
        '+      <source file="/images/two.iso" />',
    ]


def test_no_password_is_shown():
    """Broken: a screen password would end in a ticket or a log."""
    after = DOMAIN.replace("secret", "hidden1").replace("port='-1'", "port='5901'")
    lines = "\n".join(configuration.changes(DOMAIN, after, names=NAMES))
    assert "5901" in lines
    assert "secret" not in lines
    assert "hidden1" not in lines


def postgresql(version: str = "17.2", **position: str) -> WriterReport:
    return WriterReport("postgresql:17/main", "postgresql", version, Level.BACK_END, Grade.NIL_REDO, position=position)


def test_applications_that_came_went_stayed_or_were_upgraded():
    """Broken: an application that a restore would take away would not be named."""
    others = [WriterReport(name, name, "1", Level.BACK_END, Grade.CRASH) for name in ("mysqld", "redis", "mongod")]
    found = compare_writers(
        [postgresql("17.1"), others[0], others[2]], [others[1], postgresql("17.2"), others[2]], one_line=True
    )
    assert [(change.id, change.kind) for change in found] == [
        ("mongod", ChangeKind.SAME),
        ("mysqld", ChangeKind.REMOVED),
        ("postgresql:17/main", ChangeKind.CHANGED),
        ("redis", ChangeKind.ADDED),
    ]


def test_a_guest_that_was_not_asked_is_not_one_without_applications():
    """Broken: a crash-consistent checkpoint would make every database look removed."""
    asked = node("a", filesystems=(Filesystem("/", "ext4", "/dev/vda", FreezeState.THAWED),))
    with_database = node("b", writers=(postgresql(),))
    assert writer_changes(asked, node("silent"), one_line=True) is None
    assert writer_changes(asked, None, one_line=True) is None
    (change,) = writer_changes(asked, with_database, one_line=True) or ()
    assert change.kind is ChangeKind.ADDED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("web1",), "'web1' does not name a checkpoint"),
        (("web1@a", "web2"), "'web2' does not name a checkpoint"),
        (("web1@a", "web2@b"), "web1 and web2 are two VMs"),
        (("web1@a", "web1@"), "'web1@' does not name a checkpoint"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error_without_asking_libvirt(arguments, message, tmp_path):
    """Broken: the wrong two things would be compared."""
    result = CliRunner().invoke(app, ["diff", *arguments, "--connect", "nonsense:///", "--catalog", str(tmp_path / "c.db")])
    assert result.exit_code == 2
    assert message in result.stderr
