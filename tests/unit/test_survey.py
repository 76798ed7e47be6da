"""disks/survey.py: what is concluded from images, and how they are found."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Any

import pytest

from quiesce.disks.survey import Survey, survey
from quiesce.model.chains import Chains, Image
from quiesce.model.errors import HypervisorError, NotFoundError, RefusedError
from quiesce.model.tree import Checkpoint, DiskImage, MachineFile, Role, Tree
from tests.samples import node
from tests.unit.conftest import Fake

MIB = 1024 * 1024


def at(key: str, path: str, parent: str | None = None, target: str = "vda", **others: Any) -> Checkpoint:
    return node(key, parent=parent, disks=(DiskImage(target, path, "qcow2"),), **others)


def surveyed(
    below: dict[str, str | None],
    nodes: list[Checkpoint],
    head: dict[str, str],
    *,
    parent: str | None = None,
    sizes: dict[str, int] | None = None,
    **others: Any,
) -> Survey:
    """All images are ours but those whose names say that they are not."""
    ours = {*head.values(), *(path for item in nodes for path in item.paths())}
    named = Chains(below).needed({*below, *ours})
    values: dict[str, Any] = {
        "tree": Tree.of(nodes, parent),
        "images": {
            path: Image(path, "qcow2", lower, 100 * MIB, (sizes or {}).get(path, 0), "1.0") for path, lower in below.items()
        },
        "unreadable": {},
        "head": head,
        "named": frozenset(head.values()),
        "made": frozenset(path for path in below if "foreign" not in path and path != "/i/base"),
        "merged": frozenset(),
        "live": frozenset(),
        "others": frozenset(),
        "elsewhere": frozenset(path for path in named if path.startswith("/dev/")),
        "places": {path: posixpath.dirname(path) for path in named if not path.startswith("/dev/")},
    }
    return Survey(**{**values, **others})


BELOW: dict[str, str | None] = {"/i/base": None, "/i/b": "/i/base", "/i/now": "/i/b", "/i/left": "/i/b"}
HEAD = {"vda": "/i/now"}
NODES = [at("a", "/i/base"), at("b", "/i/b", "a")]


# -- whose an image is


def test_an_image_into_which_another_was_merged_is_that_ones():
    """Broken: a deleted checkpoint would hold on to a file that is another one's, and what lies on it be merged into it."""
    a, b = at("a", "/i/base", hidden=True), at("b", "/i/base", "a")
    found = surveyed({"/i/base": None, "/i/now": "/i/base"}, [b, a], {"vda": "/i/now"}, parent="b")
    assert found.owners() == {"/i/base": b, "/i/now": None}


def test_an_image_of_a_checkpoint_a_user_knows_is_never_a_deleted_ones():
    """Broken: a checkpoint would be overwritten with what came after it. A disk that a restore has left as it is lies on
    another branch than the others, so that the deleted one may stand higher in the tree."""
    deleted = [at("x", "/x"), at("y", "/y", "x"), at("z", "/i/b", "y", hidden=True)]
    kept = at("k", "/i/b")
    found = surveyed(BELOW, [*deleted, kept], {"vda": "/i/now"}, parent="k")
    assert found.owners()["/i/b"] is kept


def test_what_the_vm_writes_is_its_own():
    """Broken: a deletion would go on merging into what the VM has been put on already."""
    found = surveyed({"/i/base": None}, [at("a", "/i/base", hidden=True)], {"vda": "/i/base"}, parent="a")
    assert found.owners() == {"/i/base": None}


# -- what nothing needs


def test_files_of_ours_that_nothing_needs_those_first_that_lie_on_others():
    """Broken: disks would fill up, or an image be removed under another that is removed only after it."""
    below = {**BELOW, "/i/left": "/i/b", "/i/upper": "/i/left", "/i/memory": None}
    assert surveyed(below, NODES, {"vda": "/i/now"}).orphans() == ["/i/upper", "/i/left", "/i/memory"]


def test_what_a_checkpoint_or_the_vm_reads_through_is_no_orphan():
    """Broken: a checkpoint would be lost, though nobody has deleted it. Hidden ones, too, hold what others need."""
    b = at("b", "/i/b", "a", hidden=True, files=(MachineFile(Role.NVRAM, "/i/b.nvram"),))
    found = surveyed({**BELOW, "/i/b.nvram": None}, [NODES[0], b], {"vda": "/i/now"})
    assert found.needed() == {"/i/base", "/i/b", "/i/now", "/i/b.nvram"}
    assert found.orphans() == ["/i/left"]
    below = {"/i/base": None, "/i/old": "/i/base", "/i/now": "/i/old"}
    assert surveyed(below, [NODES[0]], {"vda": "/i/now"}, merged=frozenset({"/i/old"})).orphans() == []


def test_what_the_vms_next_definition_names_is_no_orphan():
    """Broken: a VM would not start again."""
    assert surveyed(BELOW, NODES, {"vda": "/i/now"}, named=frozenset({"/i/now", "/i/left"})).orphans() == []


def test_what_somebody_else_reads_through_is_no_orphan():
    """Broken: a clone that somebody made of a checkpoint would be destroyed when that is deleted."""
    below = {**BELOW, "/i/foreign": "/i/left"}
    assert surveyed(below, NODES, {"vda": "/i/now"}).orphans() == []


@pytest.mark.parametrize("whose", ["live", "others"])
def test_what_an_administrator_or_another_vm_holds_is_no_orphan(whose):
    """Broken: a disk that was taken from the VM for an hour, or given to another VM, would be removed."""
    assert surveyed(BELOW, NODES, {"vda": "/i/now"}, **{whose: frozenset({"/i/left"})}).orphans() == []


def test_what_is_gone_and_what_is_not_ours_is_no_orphan():
    """Broken: a file of somebody else would be removed, or one be looked for that is not there."""
    made = frozenset({"/i/gone", "/i/left"})
    below = {**BELOW, "/i/foreign": None}
    assert surveyed(below, NODES, {"vda": "/i/now"}, made=made).orphans() == ["/i/left"]


# -- what is gone


def test_what_of_a_checkpoint_is_gone_is_told():
    """Broken: a checkpoint would be restored on what is left of it, or be given up for a disk that is only not mounted."""
    below = {"/i/b": "/i/base", "/j/c": "/k/d"}
    disks = (DiskImage("vda", "/i/b", "qcow2"), DiskImage("vdb", "/j/c", "qcow2"))
    b = node("b", disks=disks, files=(MachineFile(Role.TPM, "/i/b.tpm"),))
    found = surveyed(below, [b], {}, unreadable={"/k": "no"})
    assert found.missing(b) == ["/i/b.tpm", "/i/base"]
    assert surveyed({"/i/b": "/dev/vg/base"}, [], {}).missing(at("b", "/i/b")) == []


def test_nothing_is_concluded_from_chains_that_are_not_whole():
    """Broken: images would be merged or removed although nobody can tell what lies on them."""
    surveyed(BELOW, NODES, {"vda": "/i/now"}).require_complete_chains()
    surveyed({"/i/now": "/dev/vg/base"}, [], {"vda": "/i/now"}).require_complete_chains()
    for gone in ("/i/base", "/i/b"):
        below = {path: lower for path, lower in BELOW.items() if path != gone}
        with pytest.raises(NotFoundError, match=f"{gone} does not exist"):
            surveyed(below, NODES, {"vda": "/i/now"}).require_complete_chains()
    with pytest.raises(NotFoundError, match="/i/now does not exist"):
        surveyed({"/i/base": None}, [NODES[0]], {"vda": "/i/now"}).require_complete_chains()


# -- where disks stand


def test_disks_stand_on_the_nearest_checkpoint_below_them():
    """Broken: a checkpoint would be recorded below another one than it is based on."""
    below = {**BELOW, "/i/b": "/i/merged", "/i/merged": "/i/base", "/i/new": None, "/i/foreign": "/i/now"}
    found = surveyed(below, NODES, {"vda": "/i/now"})
    disks = {"vda": "/i/now", "vdb": "/i/b", "vdc": "/i/new", "vdd": "/i/gone", "vde": "/i/left"}
    assert found.standing(disks) == {"vda": "b", "vdb": "a", "vdc": None, "vdd": None, "vde": "b"}
    assert found.standing({"vda": "/i/foreign"}) == {"vda": None}


def test_a_chain_as_the_tree_says_passes():
    """Broken: every second checkpoint would be refused."""
    surveyed(BELOW, NODES, {"vda": "/i/now"}, parent="b").require_known_chain({"vda": "/i/now"})
    surveyed(BELOW, NODES, {"vda": "/i/now"}, parent=None).require_known_chain({"vda": "/i/now"})
    surveyed({"/i/now": None}, [], {"vda": "/i/now"}).require_known_chain({"vda": "/i/now"})


@pytest.mark.parametrize("below", [None, "/i/base", "/i/foreign", "/i/gone"])
def test_a_chain_that_somebody_changed_is_refused(below):
    """Broken: a checkpoint would be recorded below one it is not based on, and restored as something else."""
    images = {"/i/foreign": None, **BELOW, "/i/now": below}
    with pytest.raises(RefusedError, match="chain of disk vda") as refusal:
        surveyed(images, NODES, {"vda": "/i/now"}, parent="b").require_known_chain({"vda": "/i/now"})
    assert "/i/b" in refusal.value.message
    assert "doctor" in refusal.value.hint


@pytest.mark.parametrize("parent", ["b", "a", None])
def test_a_vm_that_writes_a_checkpoints_image_is_refused(parent):
    """Broken: what somebody has merged into a checkpoint with virsh would be taken for that checkpoint once more."""
    found = surveyed({"/i/base": None, "/i/b": "/i/base"}, NODES, {"vda": "/i/b"}, parent=parent)
    with pytest.raises(RefusedError, match="by checkpoint 'b', it should be an overlay of /i/b"):
        found.require_known_chain({"vda": "/i/b"})


def test_a_disk_that_a_restore_left_as_it_is_may_stand_elsewhere():
    """Broken: a VM could never be checkpointed again once a checkpoint without all its disks was restored, and deleted."""
    nodes = [at("a", "/i/base"), at("b", "/i/b", "a"), at("c", "/i/c", target="vdb")]
    nodes[1] = replace(nodes[1], disks=(*nodes[1].disks, DiskImage("vdb", "/i/b2", "qcow2")))
    below = {**BELOW, "/i/c": None, "/i/b2": None, "/i/now2": "/i/c"}
    head = {"vda": "/i/now", "vdb": "/i/now2"}
    surveyed(below, nodes, head, parent="b").require_known_chain(head)
    with pytest.raises(RefusedError, match="chain of disk vdb"):
        surveyed({**below, "/i/now2": None}, nodes, head, parent="b").require_known_chain(head)


def test_what_has_been_merged_into_the_vm_itself_is_no_change_of_the_chain():
    """Broken: after an interrupted deletion, a VM could not be checkpointed until a repair."""
    nodes = [at("a", "/i/base", hidden=True)]
    surveyed({"/i/base": None}, nodes, {"vda": "/i/base"}, parent="a").require_known_chain({"vda": "/i/base"})


def test_nobody_needs_to_lie_on_a_deleted_checkpoint_that_was_merged_away():
    """Broken: after two interrupted deletions, a VM could not be checkpointed until a repair. What lay on the second one was
    merged past it, into the first."""
    nodes = [at("a", "/i/base", hidden=True), at("b", "/i/b", "a", hidden=True)]
    below = {"/i/base": None, "/i/b": "/i/base"}
    surveyed(below, nodes, {"vda": "/i/base"}, parent="b").require_known_chain({"vda": "/i/base"})
    nodes = [at("a", "/i/base"), *nodes[1:]]
    below["/i/now"] = "/i/base"
    surveyed(below, nodes, HEAD, parent="b").require_known_chain(HEAD)


def test_a_disk_added_since_the_last_checkpoint_is_no_obstacle():
    """Broken: after adding a disk a VM could never be checkpointed again."""
    head = {"vda": "/i/now", "vdb": "/i/new"}
    surveyed({**BELOW, "/i/new": None}, NODES, head, parent="b").require_known_chain(head)


# -- room


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"/i/now": 5 * MIB, "/i/old": 3 * MIB, "/i/b": 50 * MIB}, 8 * MIB),
        ({"/i/now": 90 * MIB, "/i/old": 90 * MIB, "/i/b": 50 * MIB}, 50 * MIB + 100 * MIB // 1000 + MIB),
        ({"/i/now": 5 * MIB, "/i/b": 200 * MIB}, 0),
        ({}, 0),
    ],
    ids=["all that is above", "no more than a full image", "nothing", "empty"],
)
def test_a_merge_needs_room_for_what_it_moves_and_no_more_than_a_full_disk(sizes, expected):
    """Broken: a merge would fill the disk its VM runs on, or be refused although there is room."""
    below = {"/i/base": None, "/i/b": "/i/base", "/i/old": "/i/b", "/i/now": "/i/old"}
    sizes = {"/i/base": 77 * MIB, **sizes}
    assert surveyed(below, NODES, {"vda": "/i/now"}, sizes=sizes).room_for_merge("/i/now", "/i/b") == expected


# -- how they are found


def test_all_directories_are_looked_through_that_an_image_lies_in(fake: Fake):
    """Broken: an image below another, in another directory, would be taken for gone, or one on it be overlooked."""
    host = fake.host
    host.storage.make("/k/lowest")
    host.storage.make("/j/base", "/k/lowest")
    host.storage.make("/j/template's clone", "/j/base")
    host.storage.make("/i/clone", "/i/vda.qcow2")
    host.storage.files["/i/vda.qcow2"].below = "/j/base"
    fake.own("/l/left")
    host.storage.make("/elsewhere/other")
    found = fake.survey()
    assert found.images.keys() == {"/i/vda.qcow2", "/i/clone", "/j/base", "/k/lowest", "/l/left"}
    assert found.chains.readers("/k/lowest") == {"/j/base", "/i/clone", "/i/vda.qcow2"}
    assert (found.head, found.named, found.made) == ({"vda": "/i/vda.qcow2"}, {"/i/vda.qcow2"}, {"/l/left"})
    assert found.orphans() == ["/l/left"]


def test_a_clone_of_another_vm_is_found_wherever_it_is(fake: Fake):
    """Broken: a deletion would destroy a VM that was cloned from a checkpoint into another directory."""
    fake.own("/i/old")
    fake.host.storage.make("/clones/one", "/i/old")
    fake.host.open_elsewhere.add("/clones/one")
    found = fake.survey()
    assert found.chains.readers("/i/old") == {"/clones/one"}
    assert found.orphans() == []


def test_nothing_is_done_without_looking_everywhere(fake: Fake):
    """Broken: images would be taken for gone, and their checkpoints given up, because a share is not mounted."""
    fake.add(at("a", "/far/a"))
    fake.host.storage.unreadable["/far"] = "stale file handle"
    with pytest.raises(HypervisorError, match="/far, which has images of web1, cannot be read: stale file handle"):
        fake.survey()
    found = survey(fake.context, fake.vm, patient=True)
    assert found.unreadable == {"/far": "stale file handle"}
    assert found.missing(fake.tree().nodes[0]) == []


def test_a_directory_without_any_of_its_images_is_taken_for_not_mounted(fake: Fake):
    """Broken: after a reboot without the share, the doctor would give up all checkpoints on it."""
    fake.add(at("a", "/far/a"))
    fake.host.storage.make("/far/lost+found")
    with pytest.raises(HypervisorError, match="is it mounted"):
        fake.survey()


@pytest.mark.parametrize("bottom", ["/dev/vg/base", "nbd://images.example.org/base"])
def test_what_is_no_file_at_the_bottom_is_not_looked_for(bottom, fake: Fake):
    """Broken: a VM whose first image lies on a volume of LVM, or on another server, could not be checkpointed."""
    fake.host.storage.files["/i/vda.qcow2"].below = bottom
    fake.host.storage.unreadable["/dev/vg"] = "no directory of images"
    found = fake.survey()
    assert found.chains.chain("/i/vda.qcow2") == ("/i/vda.qcow2", bottom)
    assert found.elsewhere == {bottom}
    assert found.missing(at("a", "/i/vda.qcow2")) == []
    found.require_complete_chains()
