"""catalog/store.py, on real SQLite files."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from quiesce.catalog.journal import Journal, interrupted
from quiesce.catalog.store import SCHEMA_VERSION, Catalog, default_url
from quiesce.model.errors import NameTakenError, QuiesceError
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.reports import Filesystem, FreezeState, WriterReport
from quiesce.model.settings import Settings, Type
from quiesce.model.tree import DiskImage, MachineFile, Role, Tree
from tests.samples import node

WRITER = WriterReport(
    "postgresql:17/main",
    "postgresql",
    "17.2",
    Level.BACK_END,
    Grade.NIL_REDO,
    position={"redo_lsn": "0/1"},
    timings_us={"lock": 5},
)
FULL = node(
    "full",
    parent="other",
    stall_us=61_000,
    writers=(WRITER,),
    filesystems=(Filesystem("/", "ext4", "/dev/vda", FreezeState.THAWED, freeze_us=12),),
    phases_us={"hold back-end": 8},
    guest_clock_ns={"held": 2**62},
    warnings=("größer als 中",),
    off=True,
    hidden=False,
    excluded=("vdb",),
    files=(MachineFile(Role.NVRAM, "/images/a.nvram"), MachineFile(Role.TPM, "/images/a.tpm")),
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/catalog.db"


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    opened = Catalog(url)
    yield opened
    opened.close()


def ids(catalog: Catalog) -> list[str]:
    return [found.id for found in catalog.tree("host1", "uuid-1").checkpoints]


def test_what_was_recorded_is_there_after_reopening(url, catalog):
    """Broken: a checkpoint, or the evidence for its label, would be lost or changed."""
    catalog.add(FULL, "<domain/>", head_parent="full")
    catalog.close()
    again = Catalog(url)
    tree = again.tree("host1", "uuid-1")
    assert tree.checkpoints == (FULL,)
    assert tree.head_parent == "full"
    assert again.domain_xml("full") == "<domain/>"
    again.close()


@pytest.mark.parametrize(
    "others",
    [
        {"warnings": ("postgresql:17/main: " + "x" * 4096,)},
        {"disks": (DiskImage("vda", "/images/my\u00a0vm\u200b.qcow2", "qcow2"),)},
    ],
    ids=["a long warning", "an unprintable path"],
)
def test_what_was_recorded_comes_back_as_it_was(others, catalog):
    """Broken: one long warning would make the VM's whole tree unreadable, or a path would name no image any more."""
    recorded = node("a", **others)
    catalog.add(recorded, "<domain/>", head_parent="a")
    assert catalog.tree("host1", "uuid-1").checkpoints == (recorded,)
    assert catalog.checkpoints_with("host1", recorded.disks[0].path) == ["a"]


def test_an_unknown_vm_has_an_empty_tree(catalog):
    """Broken: the first checkpoint of a VM could not be taken."""
    tree = catalog.tree("host1", "nobody")
    assert (tree.checkpoints, tree.head_parent) == ((), None)


def test_vms_and_hosts_do_not_see_each_other(catalog):
    """Broken: two VMs of one name on two hosts would share their checkpoints."""
    catalog.add(node("a"), "<a/>", head_parent="a")
    catalog.add(node("b", name="a", vm_uuid="uuid-2"), "<b/>", head_parent="b")
    catalog.add(node("c", name="a", host="host2"), "<c/>", head_parent=None)
    assert ids(catalog) == ["a"]
    assert catalog.tree("host2", "uuid-1").head_parent is None


def test_checkpoints_are_counted_by_vm(catalog):
    """Broken: the list of VMs would show another VM's checkpoints, or those that were deleted."""
    assert catalog.counts("host1") == {}
    for key, others in {"a": {}, "b": {}, "c": {"vm_uuid": "uuid-2"}, "d": {"host": "host2"}}.items():
        catalog.add(node(key, **others), "<domain/>", head_parent=None)
    assert catalog.counts("host1") == {"uuid-1": 2, "uuid-2": 1}
    assert catalog.counts("host2") == {"uuid-1": 1}
    assert catalog.counts("host3") == {}
    catalog.remove(node("c", vm_uuid="uuid-2"))
    catalog.update(node("a", hidden=True))
    assert catalog.counts("host1") == {"uuid-1": 1}


def test_what_stood_on_a_removed_checkpoint_stands_on_its_parent(catalog):
    """Broken: a removed checkpoint would stay in the tree, or checkpoints and the VM hang on what is gone."""
    for key, parent in {"a": None, "b": "a", "c": "b", "d": "b", "e": "c"}.items():
        catalog.add(node(key, parent=parent), f"<{key}/>", head_parent="b")
    catalog.add(node("x", parent="b", vm_uuid="uuid-2"), "<x/>", head_parent="b")  # a strange coincidence
    catalog.remove(node("b", parent="a"))
    tree = catalog.tree("host1", "uuid-1")
    assert {found.id: found.parent for found in tree.nodes} == {"a": None, "c": "a", "d": "a", "e": "c"}
    assert tree.head_parent == "a"
    assert (catalog.has("a"), catalog.has("b")) == (True, False)
    assert catalog.tree("host1", "uuid-2").head_parent == "b"


def test_removing_a_checkpoint_leaves_a_head_that_stands_elsewhere(catalog):
    """Broken: after a deletion the next checkpoint would hang on the wrong node, and a restore's record be lost."""
    catalog.add(node("a"), "<a/>", head_parent="a", untouched={"/i/now": "1.5"})
    catalog.add(node("b", parent="a"), "<b/>", head_parent="a", untouched={"/i/now": "1.5"})
    catalog.remove(node("b", parent="a"))
    assert catalog.tree("host1", "uuid-1").head_parent == "a"
    assert catalog.untouched("host1", "uuid-1") == {"/i/now": "1.5"}


def test_the_head_is_moved_alone(catalog):
    """Broken: after a restore the next checkpoint would hang on the wrong node."""
    catalog.add(node("a"), "<a/>", head_parent="a")
    catalog.set_head("host1", "uuid-1", None)
    assert catalog.tree("host1", "uuid-1").head_parent is None
    catalog.set_head("host1", "uuid-1", "a")
    assert catalog.tree("host1", "uuid-1").head_parent == "a"


def test_a_name_is_given_once_and_a_refusal_changes_nothing(catalog):
    """Broken: VM@NAME would mean two checkpoints, or a refused one would move the head."""
    catalog.add(node("a", name="before"), "<a/>", head_parent="a")
    with pytest.raises(NameTakenError, match="web1 has a checkpoint named 'before' already"):
        catalog.add(node("b", name="before"), "<b/>", head_parent="b")
    assert ids(catalog) == ["a"]
    assert catalog.tree("host1", "uuid-1").head_parent == "a"


def test_what_a_restore_left_is_known_until_something_else_is_said_of_the_head(catalog):
    """Broken: disks would be called application-consistent for what was restored although a guest has written since."""
    written = {"/i/now.vda": "1767225600.123456789", "/i/now.vdb": "2.0"}
    assert catalog.untouched("host1", "uuid-1") == {}
    catalog.set_head("host1", "uuid-1", "a", written)
    assert catalog.untouched("host1", "uuid-1") == written
    assert catalog.untouched("host1", "uuid-2") == catalog.untouched("host2", "uuid-1") == {}
    catalog.add(node("b"), "<b/>", head_parent="b")
    assert catalog.untouched("host1", "uuid-1") == {}
    catalog.add(node("c"), "<c/>", head_parent="c", untouched=written)
    assert catalog.untouched("host1", "uuid-1") == written
    catalog.set_head("host1", "uuid-1", "b")
    assert catalog.untouched("host1", "uuid-1") == {}


def test_a_hidden_checkpoint_stays_and_its_name_is_free(url, catalog):
    """Broken: a deleted checkpoint's images would be forgotten while others need them, or its name be taken for good."""
    catalog.add(node("a", name="before"), "<a/>", head_parent="a")
    catalog.update(node("a", name="before", hidden=True))
    again = Catalog(url)
    tree = again.tree("host1", "uuid-1")
    assert ([found.id for found in tree.nodes], tree.checkpoints) == (["a"], ())
    assert again.domain_xml("a") == "<a/>"
    again.close()
    catalog.add(node("b", name="before"), "<b/>", head_parent="b")
    catalog.update(node("b", name="before", hidden=True))  # two of them have no name
    assert [found.id for found in catalog.tree("host1", "uuid-1").nodes] == ["a", "b"]


def test_an_update_is_of_all_or_of_none(catalog):
    """Broken: of a deletion of many half would be shown as deleted, or a rename give two checkpoints one name."""
    for key in "abc":
        catalog.add(node(key), f"<{key}/>", head_parent=None)
    with pytest.raises(NameTakenError, match="is there already"):
        catalog.update(node("a", warnings=("new",)), node("b", name="c"))
    assert catalog.tree("host1", "uuid-1").checkpoints == (node("a"), node("b"), node("c"))
    catalog.update(node("a", name="z"), node("b", hidden=True))
    assert [found.name for found in catalog.tree("host1", "uuid-1").checkpoints] == ["z", "c"]
    assert catalog.tree("host1", "uuid-1").head_parent is None
    assert catalog.domain_xml("a") == "<a/>"


def test_where_a_merge_put_an_image_and_what_it_left_are_recorded_at_once(catalog):
    """Broken: a checkpoint would lose its image, or what still lies on the old one could not be told from a stranger."""
    old = node("a").disks[0].path
    for path in (old, "/i/other"):
        catalog.note_image("host1", "uuid-1", path)
    catalog.note_image("host1", "uuid-2", "/i/theirs")
    catalog.note_image("host2", "uuid-1", old)
    catalog.add(node("a"), "<a/>", head_parent="a")
    catalog.add(node("b", hidden=True, disks=node("a").disks), "<b/>", head_parent="a")
    catalog.add(node("c", vm_uuid="uuid-2", disks=node("a").disks), "<c/>", head_parent="c")
    assert catalog.merged_images("host1", "uuid-1") == set()
    disks = (DiskImage("vda", "/i/base", "qcow2"),)
    moved = [node("a", disks=disks), node("b", hidden=True, disks=disks)]
    assert catalog.moved("host1", "uuid-1", old, "/i/base") == moved
    assert catalog.tree("host1", "uuid-1").nodes == tuple(moved)
    assert catalog.tree("host1", "uuid-2").nodes[0].disks == node("a").disks
    assert catalog.merged_images("host1", "uuid-1") == {old}
    assert catalog.merged_images("host1", "uuid-2") == catalog.merged_images("host2", "uuid-1") == set()
    catalog.forget_image("host1", old)
    assert catalog.merged_images("host1", "uuid-1") == set()
    catalog.moved(
        "host1", "uuid-1", "/i/vms-own-first-disk", "/i/base"
    )  # not ours: it is never removed, so nothing need be known of it
    assert catalog.merged_images("host1", "uuid-1") == set()


def test_settings_come_back_as_they_were(url, catalog):
    """Broken: a VM's checkpoints would be taken otherwise than its administrator has said."""
    assert catalog.settings("host1", "uuid-1") == Settings()
    chosen = Settings(Type.STANDARD, Consistency.FILESYSTEM, automatic=True, exclude=("vdb", "vdc"))
    catalog.set_settings("host1", "uuid-1", Settings(Type.DISABLED))
    catalog.set_settings("host1", "uuid-1", chosen)
    again = Catalog(url)
    assert again.settings("host1", "uuid-1") == chosen
    assert again.settings("host1", "uuid-2") == again.settings("host2", "uuid-1") == Settings()
    again.close()


def test_the_least_that_is_accepted_of_a_vm_nothing_was_said_of_is_the_most():
    """Broken: VMs would get crash-consistent checkpoints by default."""
    assert Settings() == Settings(Type.PRODUCTION, Consistency.APPLICATION, automatic=False, exclude=())


def test_every_vm_with_a_checkpoint_or_a_file_is_known(catalog):
    """Broken: `doctor` would pass over a VM, and what was left of it stay for good."""
    catalog.add(node("a"), "<a/>", head_parent="a")
    catalog.note_image("host1", "uuid-0", "/i/a")
    catalog.note_image("host1", "uuid-1", "/i/b")
    catalog.add(node("b", vm_uuid="uuid-9", hidden=True), "<b/>", head_parent=None)
    catalog.add(node("c", vm_uuid="uuid-8", host="host2"), "<c/>", head_parent=None)
    assert catalog.vm_uuids("host1") == ["uuid-0", "uuid-1", "uuid-9"]
    assert catalog.vm_uuids("host3") == []


def test_all_that_is_known_of_a_vm_goes_to_another(catalog):
    """Broken: a VM that was defined anew would lose its checkpoints, their images, or what interrupted operations left."""
    catalog.add(node("a"), "<a/>", head_parent="a", untouched={"/i/now": "1"})
    catalog.add(node("b", parent="a", hidden=True), "<b/>", head_parent="a", untouched={"/i/now": "1"})
    catalog.note_image("host1", "uuid-1", "/i/now")
    catalog.set_settings("host1", "uuid-1", Settings(Type.STANDARD))
    pending = Journal(catalog, "host1", "uuid-1", "delete")
    catalog.set_head("host1", "uuid-2", None)
    catalog.set_settings("host1", "uuid-2", Settings(Type.DISABLED))
    catalog.add(node("x", host="host2"), "<x/>", head_parent="x")
    catalog.rehome("host1", "uuid-1", "uuid-2")
    tree = catalog.tree("host1", "uuid-2")
    assert tree.nodes == (node("a", vm_uuid="uuid-2"), node("b", parent="a", hidden=True, vm_uuid="uuid-2"))
    assert tree.head_parent == "a"
    assert catalog.untouched("host1", "uuid-2") == {"/i/now": "1"}
    assert catalog.images_made_for("host1", "uuid-2") == ["/i/now"]
    assert catalog.settings("host1", "uuid-2").type is Type.STANDARD
    assert [operation.id for operation in interrupted(catalog, "host1", "uuid-2")] == [pending.id]
    assert catalog.domain_xml("a") == "<a/>"
    assert catalog.tree("host1", "uuid-1") == Tree((), None)
    assert catalog.vm_uuids("host1") == ["uuid-2"]
    assert catalog.tree("host2", "uuid-1").head_parent == "x"


def test_two_vms_with_checkpoints_of_one_name_stay_two(catalog):
    """Broken: one VM's checkpoint would replace, or hide, the other's."""
    catalog.add(node("a", name="before"), "<a/>", head_parent="a")
    catalog.add(node("b", name="before", vm_uuid="uuid-2"), "<b/>", head_parent="b")
    with pytest.raises(NameTakenError, match="named the same"):
        catalog.rehome("host1", "uuid-1", "uuid-2")
    assert catalog.tree("host1", "uuid-1").nodes == (node("a", name="before"),)
    assert catalog.tree("host1", "uuid-2").head_parent == "b"


def test_a_vm_that_becomes_itself_keeps_all(catalog):
    """Broken: where it stands, and its settings, would be forgotten."""
    catalog.add(node("a"), "<a/>", head_parent="a")
    catalog.set_settings("host1", "uuid-1", Settings(Type.STANDARD))
    catalog.rehome("host1", "uuid-1", "uuid-1")
    assert catalog.tree("host1", "uuid-1").head_parent == "a"
    assert catalog.settings("host1", "uuid-1").type is Type.STANDARD


def test_only_images_of_ours_are_known(catalog):
    """Broken: an image that somebody else made could be removed."""
    catalog.note_image("host1", "uuid-1", "/images/a.qcow2")
    assert catalog.made_image("host1", "/images/a.qcow2")
    assert not catalog.made_image("host1", "/images/b.qcow2")
    assert not catalog.made_image("host2", "/images/a.qcow2")
    catalog.forget_image("host1", "/images/a.qcow2")
    assert not catalog.made_image("host1", "/images/a.qcow2")


def test_an_images_checkpoints_are_found_whatever_their_vm(catalog):
    """Broken: an image that a checkpoint consists of could be removed."""
    catalog.add(node("a", name="before"), "<domain/>", head_parent=None)
    catalog.add(node("a2", name="other", vm_uuid="uuid-2", disks=node("a").disks), "<domain/>", head_parent=None)
    path = node("a").disks[0].path
    catalog.add(node("a3", name="kept", files=(MachineFile(Role.NVRAM, "/i/a.nvram"),)), "<domain/>", head_parent=None)
    assert sorted(catalog.checkpoints_with("host1", path)) == ["before", "other"]
    assert catalog.checkpoints_with("host1", "/i/a.nvram") == ["kept"]
    assert catalog.checkpoints_with("host2", path) == []
    assert catalog.checkpoints_with("host1", path + "x") == []


def test_locks_lie_beside_the_file(catalog, tmp_path):
    """Broken: two catalogs' operations would block each other, or two of one not."""
    assert catalog.lock_directory() == tmp_path / "state" / "locks"


def test_the_directory_is_made_and_nobody_elses_business(url, tmp_path):
    """Broken: the first run would fail, or other users could read where the images are."""
    Catalog(url).close()
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_what_was_committed_survives_a_power_failure(catalog):
    """Broken: a checkpoint could be in use on disk and unknown to the catalog."""
    with catalog.transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() >= 5000


def test_a_catalog_of_another_version_is_refused(url, catalog):
    """Broken: an old quiesce would write into a new one's catalog what that does not understand."""
    with catalog.transaction() as connection:
        connection.execute(sa.text("UPDATE schema_version SET version = 99"))
    with pytest.raises(QuiesceError, match="schema 99"):
        Catalog(url)


@pytest.mark.parametrize("content", [b"this is no database, but it is long enough to be looked at" * 20, None])
def test_what_is_no_catalog_is_refused(content, tmp_path):
    """Broken: a wrong --catalog would end in a traceback."""
    path = tmp_path / "thing"
    path.write_bytes(content) if content else path.mkdir()
    with pytest.raises(QuiesceError, match="cannot open the catalog"):
        Catalog(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("postgresql://db/quiesce", "postgresql://db/quiesce"),
        ("/srv/c.db", "sqlite:////srv/c.db"),
        ("sqlite:///x", "sqlite:///x"),
    ],
)
def test_the_environment_names_the_catalog(value, expected, monkeypatch):
    """Broken: operations would be recorded where nobody looks."""
    monkeypatch.setenv("QUIESCE_CATALOG", value)
    assert default_url() == expected


WRITE = """
import sys
from quiesce.catalog.journal import Journal
from quiesce.catalog.store import Catalog
from tests.samples import node

catalog = Catalog(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
journal = Journal(catalog, "host1", "uuid-1", "checkpoint")
for number in range(20):
    with journal.step("record", number=number):
        catalog.add(node(f"{sys.argv[2]}{number}"), "<domain/>", head_parent=None)
"""


@pytest.mark.parametrize("attempt", range(4))
def test_processes_open_a_new_catalog_at_once(attempt, url, tmp_path):
    """Broken: of two first commands, one would fail for "table exists" or "database is locked"."""
    receive, send = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(send)
                os.read(receive, 1)  # until all are there: the parent closes the pipe
                Catalog(url).close()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    os.close(receive)
    os.close(send)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
    with sqlite3.connect(tmp_path / "state" / "catalog.db") as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(SCHEMA_VERSION,)]
    connection.close()


def test_two_processes_write_at_once(url, catalog, tmp_path):
    """Broken: two operations at a time would lose one's record, or fail for "database is locked"."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, url, key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for key in "ab"
    ]
    for process in writers:
        assert process.stdout.readline() == "ready\n"
    for process in writers:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(30) for process in writers] == [0, 0]
    for process in writers:
        process.stdin.close()
        process.stdout.close()
    assert sorted(ids(catalog)) == sorted(f"{key}{number}" for key in "ab" for number in range(20))
    with sqlite3.connect(tmp_path / "state" / "catalog.db") as connection:
        assert connection.execute("SELECT count(*), sum(done) FROM steps").fetchone() == (40, 40)
    connection.close()
