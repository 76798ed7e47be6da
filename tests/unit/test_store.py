"""catalog/store.py: what is recorded of VMs, on real SQLite files."""

from __future__ import annotations

import pytest

from quiesce.catalog.journal import Journal, interrupted
from quiesce.catalog.store import Catalog
from quiesce.model.errors import NameTakenError
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.groups import Group, Member, Tier
from quiesce.model.keys import VmKey
from quiesce.model.reports import Filesystem, FreezeState, WriterReport
from quiesce.model.settings import Settings, Type
from quiesce.model.standing import Untouched
from quiesce.model.tree import DiskImage, MachineFile, Role, Tree
from tests.samples import KEY, ids, node

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

OTHER, ELSEWHERE = VmKey("host1", "uuid-2"), VmKey("host2", "uuid-1")


def test_what_was_recorded_is_there_after_reopening(url, catalog):
    """Broken: a checkpoint, or the evidence for its label, would be lost or changed."""
    catalog.checkpoints.add(FULL, "<domain/>", head_parent="full")
    catalog.close()
    again = Catalog(url)
    tree = again.checkpoints.tree(KEY)
    assert tree.checkpoints == (FULL,)
    assert tree.head_parent == "full"
    assert again.checkpoints.domain_xml("full") == "<domain/>"
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
    catalog.checkpoints.add(recorded, "<domain/>", head_parent="a")
    assert catalog.checkpoints.tree(KEY).checkpoints == (recorded,)
    assert catalog.checkpoints.with_file("host1", recorded.disks[0].path) == ["a"]


def test_an_unknown_vm_has_an_empty_tree(catalog):
    """Broken: the first checkpoint of a VM could not be taken."""
    tree = catalog.checkpoints.tree(VmKey("host1", "nobody"))
    assert (tree.checkpoints, tree.head_parent) == ((), None)


def test_vms_and_hosts_do_not_see_each_other(catalog):
    """Broken: two VMs of one name on two hosts would share their checkpoints."""
    catalog.checkpoints.add(node("a"), "<a/>", head_parent="a")
    catalog.checkpoints.add(node("b", name="a", vm_uuid="uuid-2"), "<b/>", head_parent="b")
    catalog.checkpoints.add(node("c", name="a", host="host2"), "<c/>", head_parent=None)
    assert ids(catalog) == ["a"]
    assert catalog.checkpoints.tree(ELSEWHERE).head_parent is None


def test_checkpoints_are_counted_by_vm(catalog):
    """Broken: the list of VMs would show another VM's checkpoints, or those that were deleted."""
    assert catalog.checkpoints.counts("host1") == {}
    for key, others in {"a": {}, "b": {}, "c": {"vm_uuid": "uuid-2"}, "d": {"host": "host2"}}.items():
        catalog.checkpoints.add(node(key, **others), "<domain/>", head_parent=None)
    assert catalog.checkpoints.counts("host1") == {"uuid-1": 2, "uuid-2": 1}
    assert catalog.checkpoints.counts("host2") == {"uuid-1": 1}
    assert catalog.checkpoints.counts("host3") == {}
    catalog.checkpoints.remove(node("c", vm_uuid="uuid-2"), None)
    catalog.checkpoints.update(node("a", hidden=True))
    assert catalog.checkpoints.counts("host1") == {"uuid-1": 1}


def test_what_stood_on_a_removed_checkpoint_stands_on_its_parent(catalog):
    """Broken: a removed checkpoint would stay in the tree, or checkpoints and the VM hang on what is gone."""
    for key, parent in {"a": None, "b": "a", "c": "b", "d": "b", "e": "c"}.items():
        catalog.checkpoints.add(node(key, parent=parent), f"<{key}/>", head_parent="b")
    catalog.checkpoints.add(node("x", parent="b", vm_uuid="uuid-2"), "<x/>", head_parent="b")  # a strange coincidence
    catalog.checkpoints.remove(node("b", parent="a"), "a")
    tree = catalog.checkpoints.tree(KEY)
    assert {found.id: found.parent for found in tree.nodes} == {"a": None, "c": "a", "d": "a", "e": "c"}
    assert tree.head_parent == "a"
    assert (catalog.checkpoints.has("a"), catalog.checkpoints.has("b")) == (True, False)
    assert catalog.checkpoints.tree(OTHER).head_parent == "b"


def test_removing_a_checkpoint_leaves_a_head_that_stands_elsewhere(catalog):
    """Broken: after a deletion the next checkpoint would hang on the wrong node, and a restore's record be lost."""
    catalog.checkpoints.add(node("a"), "<a/>", head_parent="a", untouched=Untouched({"/i/now": "1.5"}))
    catalog.checkpoints.add(node("b", parent="a"), "<b/>", head_parent="a", untouched=Untouched({"/i/now": "1.5"}))
    catalog.checkpoints.remove(node("b", parent="a"), "a")
    assert catalog.checkpoints.tree(KEY).head_parent == "a"
    assert catalog.checkpoints.untouched(KEY) == Untouched({"/i/now": "1.5"})


def test_the_head_is_moved_alone(catalog):
    """Broken: after a restore the next checkpoint would hang on the wrong node."""
    catalog.checkpoints.add(node("a"), "<a/>", head_parent="a")
    catalog.checkpoints.set_head(KEY, None)
    assert catalog.checkpoints.tree(KEY).head_parent is None
    catalog.checkpoints.set_head(KEY, "a")
    assert catalog.checkpoints.tree(KEY).head_parent == "a"


def test_a_name_is_given_once_and_a_refusal_changes_nothing(catalog):
    """Broken: VM@NAME would mean two checkpoints, or a refused one would move the head."""
    catalog.checkpoints.add(node("a", name="before"), "<a/>", head_parent="a")
    with pytest.raises(NameTakenError, match="web1 has a checkpoint named 'before' already"):
        catalog.checkpoints.add(node("b", name="before"), "<b/>", head_parent="b")
    assert ids(catalog) == ["a"]
    assert catalog.checkpoints.tree(KEY).head_parent == "a"


@pytest.mark.parametrize("worth", [None, Consistency.FILESYSTEM])
def test_what_a_restore_left_is_known_until_something_else_is_said_of_the_head(worth, catalog):
    """Broken: disks would be called application-consistent for what was restored although a guest has written since."""
    written = Untouched({"/i/now.vda": "1767225600.123456789", "/i/now.vdb": "2.0"}, worth)
    assert catalog.checkpoints.untouched(KEY) is None
    catalog.checkpoints.set_head(KEY, "a", written)
    assert catalog.checkpoints.untouched(KEY) == written
    assert catalog.checkpoints.untouched(OTHER) is catalog.checkpoints.untouched(ELSEWHERE) is None
    catalog.checkpoints.add(node("b"), "<b/>", head_parent="b")
    assert catalog.checkpoints.untouched(KEY) is None
    catalog.checkpoints.add(node("c"), "<c/>", head_parent="c", untouched=written)
    assert catalog.checkpoints.untouched(KEY) == written
    catalog.checkpoints.set_head(KEY, "b")
    assert catalog.checkpoints.untouched(KEY) is None


def test_a_hidden_checkpoint_stays_and_its_name_is_free(url, catalog):
    """Broken: a deleted checkpoint's images would be forgotten while others need them, or its name be taken for good."""
    catalog.checkpoints.add(node("a", name="before"), "<a/>", head_parent="a")
    catalog.checkpoints.update(node("a", name="before", hidden=True))
    again = Catalog(url)
    tree = again.checkpoints.tree(KEY)
    assert ([found.id for found in tree.nodes], tree.checkpoints) == (["a"], ())
    assert again.checkpoints.domain_xml("a") == "<a/>"
    again.close()
    catalog.checkpoints.add(node("b", name="before"), "<b/>", head_parent="b")
    catalog.checkpoints.update(node("b", name="before", hidden=True))  # two of them have no name
    assert [found.id for found in catalog.checkpoints.tree(KEY).nodes] == ["a", "b"]


def test_an_update_is_of_all_or_of_none(catalog):
    """Broken: of a deletion of many half would be shown as deleted, or a rename give two checkpoints one name."""
    for key in "abc":
        catalog.checkpoints.add(node(key), f"<{key}/>", head_parent=None)
    with pytest.raises(NameTakenError, match="another checkpoint of that name"):
        catalog.checkpoints.update(node("a", warnings=("new",)), node("b", name="c"))
    assert catalog.checkpoints.tree(KEY).checkpoints == (node("a"), node("b"), node("c"))
    catalog.checkpoints.update(node("a", name="z"), node("b", hidden=True))
    assert [found.name for found in catalog.checkpoints.tree(KEY).checkpoints] == ["z", "c"]
    assert catalog.checkpoints.tree(KEY).head_parent is None
    assert catalog.checkpoints.domain_xml("a") == "<a/>"


def test_where_a_merge_put_an_image_and_what_it_left_are_recorded_at_once(catalog):
    """Broken: a checkpoint would lose its image, or what still lies on the old one could not be told from a stranger."""
    old = node("a").disks[0].path
    for path in (old, "/i/other"):
        catalog.images.note(KEY, path)
    catalog.images.note(OTHER, "/i/theirs")
    catalog.images.note(ELSEWHERE, old)
    catalog.checkpoints.add(node("a"), "<a/>", head_parent="a")
    catalog.checkpoints.add(node("b", hidden=True, disks=node("a").disks), "<b/>", head_parent="a")
    catalog.checkpoints.add(node("c", vm_uuid="uuid-2", disks=node("a").disks), "<c/>", head_parent="c")
    assert catalog.images.merged(KEY) == set()
    disks = (DiskImage("vda", "/i/base", "raw"),)
    moved = [node("a", disks=disks), node("b", hidden=True, disks=disks)]
    assert catalog.checkpoints.moved(KEY, old, "/i/base", "raw", {}) == moved
    assert catalog.checkpoints.tree(KEY).nodes == tuple(moved)
    assert catalog.checkpoints.tree(OTHER).nodes[0].disks == node("a").disks
    assert catalog.images.merged(KEY) == {old}
    assert catalog.images.merged(OTHER) == catalog.images.merged(ELSEWHERE) == set()
    catalog.images.forget("host1", old)
    assert catalog.images.merged(KEY) == set()
    # Not ours: it is never removed, so nothing need be known of it.
    catalog.checkpoints.moved(KEY, "/i/vms-own-first-disk", "/i/base", "qcow2", {})
    assert catalog.images.merged(KEY) == set()


def test_settings_come_back_as_they_were(url, catalog):
    """Broken: a VM's checkpoints would be taken otherwise than its administrator has said."""
    assert catalog.settings.get(KEY) == Settings()
    chosen = Settings(Type.STANDARD, Consistency.FILESYSTEM, automatic=True, exclude=("vdb", "vdc"))
    catalog.settings.put(KEY, Settings(Type.DISABLED))
    catalog.settings.put(KEY, chosen)
    again = Catalog(url)
    assert again.settings.get(KEY) == chosen
    assert again.settings.get(OTHER) == again.settings.get(ELSEWHERE) == Settings()
    again.close()


def test_the_least_that_is_accepted_of_a_vm_nothing_was_said_of_is_the_most():
    """Broken: VMs would get crash-consistent checkpoints by default."""
    assert Settings() == Settings(Type.PRODUCTION, Consistency.APPLICATION, automatic=False, exclude=())


def test_every_vm_with_a_checkpoint_a_file_or_something_unfinished_is_known(catalog):
    """Broken: `doctor` would pass over a VM, and what was left of it stay for good; also that of an import that was killed."""
    catalog.checkpoints.add(node("a"), "<a/>", head_parent="a")
    catalog.images.note(VmKey("host1", "uuid-0"), "/i/a")
    catalog.images.note(KEY, "/i/b")
    catalog.checkpoints.add(node("b", vm_uuid="uuid-9", hidden=True), "<b/>", head_parent=None)
    catalog.checkpoints.add(node("c", vm_uuid="uuid-8", host="host2"), "<c/>", head_parent=None)
    Journal(catalog, VmKey("host1", "uuid-7"), "import")
    Journal(catalog, VmKey("host1", "uuid-6"), "import").finish("done")
    assert catalog.vms("host1") == [VmKey("host1", f"uuid-{number}") for number in (0, 1, 7, 9)]
    assert catalog.vms("host3") == []


def test_all_that_is_known_of_a_vm_goes_to_another(catalog):
    """Broken: a VM that was defined anew would lose its checkpoints, their images, or what interrupted operations left."""
    catalog.checkpoints.add(node("a"), "<a/>", head_parent="a", untouched=Untouched({"/i/now": "1"}))
    catalog.checkpoints.add(node("b", parent="a", hidden=True), "<b/>", head_parent="a", untouched=Untouched({"/i/now": "1"}))
    catalog.images.note(KEY, "/i/now")
    catalog.settings.put(KEY, Settings(Type.STANDARD))
    others = (Member("host2", "uuid-1", "web1", Tier.FRONT), Member("host1", "uuid-9", "db", Tier.BACK))
    catalog.groups.put(Group("shop", (Member("host1", "uuid-1", "web1", Tier.FRONT), *others), ("more",)))
    pending = Journal(catalog, KEY, "delete")
    catalog.checkpoints.set_head(OTHER, None)
    catalog.settings.put(OTHER, Settings(Type.DISABLED))
    catalog.checkpoints.add(node("x", host="host2"), "<x/>", head_parent="x")
    catalog.rehome(KEY, OTHER)
    tree = catalog.checkpoints.tree(OTHER)
    assert tree.nodes == (node("a", vm_uuid="uuid-2"), node("b", parent="a", hidden=True, vm_uuid="uuid-2"))
    assert tree.head_parent == "a"
    assert catalog.checkpoints.untouched(OTHER) == Untouched({"/i/now": "1"})
    assert catalog.images.made_for(OTHER) == ["/i/now"]
    assert catalog.settings.get(OTHER).type is Type.STANDARD
    assert [operation.id for operation in interrupted(catalog, OTHER)] == [pending.id]
    assert catalog.checkpoints.domain_xml("a") == "<a/>"
    member = Member("host1", "uuid-2", "web1", Tier.FRONT)
    assert catalog.groups.all() == [Group("shop", (member, *others), ("more",))]
    assert catalog.checkpoints.tree(KEY) == Tree((), None)
    assert catalog.vms("host1") == [OTHER]
    assert catalog.checkpoints.tree(ELSEWHERE).head_parent == "x"


def test_two_vms_with_checkpoints_of_one_name_stay_two(catalog):
    """Broken: one VM's checkpoint would replace, or hide, the other's."""
    catalog.checkpoints.add(node("a", name="before"), "<a/>", head_parent="a")
    catalog.checkpoints.add(node("b", name="before", vm_uuid="uuid-2"), "<b/>", head_parent="b")
    with pytest.raises(NameTakenError, match="names that the other has"):
        catalog.rehome(KEY, OTHER)
    assert catalog.checkpoints.tree(KEY).nodes == (node("a", name="before"),)
    assert catalog.checkpoints.tree(OTHER).head_parent == "b"


def test_a_vm_that_becomes_itself_keeps_all(catalog):
    """Broken: where it stands, and its settings, would be forgotten."""
    catalog.checkpoints.add(node("a"), "<a/>", head_parent="a")
    catalog.settings.put(KEY, Settings(Type.STANDARD))
    catalog.rehome(KEY, KEY)
    assert catalog.checkpoints.tree(KEY).head_parent == "a"
    assert catalog.settings.get(KEY).type is Type.STANDARD


def test_only_images_of_ours_are_known(catalog):
    """Broken: an image that somebody else made could be removed."""
    catalog.images.note(KEY, "/images/a.qcow2")
    assert catalog.images.has("host1", "/images/a.qcow2")
    assert not catalog.images.has("host1", "/images/b.qcow2")
    assert not catalog.images.has("host2", "/images/a.qcow2")
    catalog.images.forget("host1", "/images/a.qcow2")
    assert not catalog.images.has("host1", "/images/a.qcow2")


def test_an_images_checkpoints_are_found_whatever_their_vm(catalog):
    """Broken: an image that a checkpoint consists of could be removed."""
    catalog.checkpoints.add(node("a", name="before"), "<domain/>", head_parent=None)
    catalog.checkpoints.add(node("a2", name="other", vm_uuid="uuid-2", disks=node("a").disks), "<domain/>", head_parent=None)
    path = node("a").disks[0].path
    catalog.checkpoints.add(
        node("a3", name="kept", files=(MachineFile(Role.NVRAM, "/i/a.nvram"),)), "<domain/>", head_parent=None
    )
    assert sorted(catalog.checkpoints.with_file("host1", path)) == ["before", "other"]
    assert catalog.checkpoints.with_file("host1", "/i/a.nvram") == ["kept"]
    assert catalog.checkpoints.with_file("host2", path) == []
    assert catalog.checkpoints.with_file("host1", path + "x") == []
