"""model/standing.py, disks/head.py and taking/offline.py: what the disks of a VM that is off are worth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.disks.head import has_content_of, standing_of
from quiesce.model.errors import ConsistencyError, RefusedError
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.reports import WriterReport
from quiesce.model.settings import Settings
from quiesce.model.standing import Standing, Untouched, standing
from quiesce.model.tree import Checkpoint
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.restore import restore
from quiesce.taking.plan import plan
from tests.samples import KEY, node
from tests.unit.conftest import Fake, reference
from tests.unit.test_survey import at

APPLICATION, FILESYSTEM, CRASH = Consistency.APPLICATION, Consistency.FILESYSTEM, Consistency.CRASH
WRITER = WriterReport("postgresql:17/main", "postgresql", "17.2", Level.BACK_END, Grade.NIL_REDO)
NOW = {"/i/now"}


# -- the rule


PARENT = node("a", consistency=FILESYSTEM)
LEFT = Untouched({"/i/now": "1"})
SINCE_A = Standing(FILESYSTEM, PARENT, "nothing was written since 'a'")


@pytest.mark.parametrize(
    ("left", "parent", "now", "images", "clean", "expected"),
    [
        (None, None, {}, NOW, True, Standing(APPLICATION)),
        (None, PARENT, {}, NOW, True, Standing(APPLICATION)),
        (None, PARENT, {}, NOW, False, Standing(CRASH)),
        (LEFT, PARENT, {"/i/now": "1"}, NOW, True, SINCE_A),
        (LEFT, PARENT, {"/i/now": "1"}, NOW, False, SINCE_A),
        (LEFT, PARENT, {"/i/now": "1", "/i/other": "9"}, NOW, False, SINCE_A),
        (LEFT, PARENT, {"/i/now": "1"}, set(), False, SINCE_A),
        (LEFT, PARENT, {"/i/now": "2"}, NOW, True, Standing(APPLICATION)),
        (LEFT, PARENT, {"/i/now": "2"}, NOW, False, Standing(CRASH)),
        (LEFT, PARENT, {}, NOW, True, Standing(CRASH)),
        (LEFT, PARENT, {"/i/now": "1"}, NOW | {"/i/vdb"}, True, Standing(CRASH)),
        (LEFT, PARENT, {"/i/now": "1", "/i/vdb": "1"}, NOW | {"/i/vdb"}, True, Standing(CRASH)),
        (LEFT, None, {"/i/now": "1"}, NOW, True, Standing(CRASH)),
        (LEFT, None, {"/i/now": "2"}, NOW, True, Standing(APPLICATION)),
        (Untouched({"/i/now": "1"}, CRASH), PARENT, {"/i/now": "1"}, NOW, True, Standing(CRASH, None, "since a restore")),
        (Untouched({"/i/now": "1"}, APPLICATION), None, {"/i/now": "1"}, NOW, False, Standing(APPLICATION, None, "a restore")),
        (Untouched({"/i/now": "1"}, APPLICATION), None, {"/i/now": "2"}, NOW, False, Standing(CRASH)),
    ],
    ids=[
        "shut down, never checkpointed",
        "shut down",
        "powered off",
        "restored, shut down before",
        "restored, powered off before",
        "another image was written",
        "less than was restored",
        "written since, shut down",
        "written since, powered off",
        "an image is gone",
        "a disk more",
        "a disk more, which is there",
        "nobody vouches",
        "nobody vouched, shut down since",
        "merged, of a crash",
        "merged, of a shutdown",
        "merged, powered off since",
    ],
)
def test_what_disks_are_worth(left, parent, now, images, clean, expected):
    """Broken: disks would be called application-consistent that no application has brought to rest, or none ever be."""
    found = standing(left, parent, now, images, shut_itself_down=clean)
    assert (found.consistency, found.source) == (expected.consistency, expected.source)
    assert (expected.note or "") in (found.note or "")
    assert (found.note is None) == (expected.note is None)


_PATHS = st.sampled_from(["/i/a", "/i/b", "/i/c"])
_WRITTEN = st.dictionaries(_PATHS, st.sampled_from(["1", "2"]))
_WORTH = st.none() | st.sampled_from(list(Consistency))
_PARENTS = st.none() | st.sampled_from([node(worth.value, consistency=worth) for worth in Consistency])


@given(st.builds(Untouched, _WRITTEN, _WORTH) | st.none(), _PARENTS, _WRITTEN, st.frozensets(_PATHS), st.booleans())
def test_nothing_is_worth_more_than_somebody_vouches_for(left, parent, now, images, clean):
    """Broken: some case that nobody thought of would be called better than it is."""
    found = standing(left, parent, now, images, shut_itself_down=clean)
    changed = left is None or any(now.get(path) != written for path, written in left.written.items())
    if found.consistency is not CRASH:
        worth = left and (left.worth or (parent and parent.consistency))
        restored = left is not None and not changed and images <= left.written.keys() and found.consistency is worth
        shut_down = changed and clean and found.consistency is APPLICATION
        assert restored or shut_down
    assert found.source in (None, parent)
    if found.source:
        assert not changed
        assert found.source.consistency is found.consistency


# -- of a VM


def restored(fake: Fake, consistency: Consistency, **others: object) -> Checkpoint:
    """A checkpoint as a restore left it, with the VM on it."""
    node = fake.add(at("a", "/i/vda.qcow2", consistency=consistency, **others))
    fake.own("/i/now", "/i/vda.qcow2")
    fake.catalog.checkpoints.set_head(KEY, "a", left_of(fake))
    fake.vm.xml = fake.vm.xml.replace("/i/vda.qcow2", "/i/now")
    return node


def left_of(fake: Fake) -> Untouched:
    return Untouched({"/i/now": fake.host.storage.image("/i/now").stamp})


@pytest.mark.parametrize(("clean", "expected"), [(True, APPLICATION), (False, CRASH)])
def test_what_a_guest_left_that_shut_itself_down_is_consistent(clean, expected, fake):
    """Broken: a VM that was powered off or crashed would be called application-consistent, or a clean one never be."""
    fake.vm.clean = clean
    assert standing_of(fake.context, fake.vm, {"/i/vda.qcow2"}) == Standing(expected)
    taken = checkpoint(fake.context, "web1", name="b", required=CRASH)
    assert (taken.consistency, taken.off, taken.writers, taken.warnings) == (expected, True, (), ())


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("worth", [APPLICATION, FILESYSTEM, CRASH])
def test_what_was_restored_and_not_started_is_worth_what_the_checkpoint_was(worth, clean, fake):
    """Broken: a crash image would be called better for having been restored to a VM that was once shut down cleanly."""
    node = restored(fake, worth, writers=(WRITER,))
    fake.vm.clean = clean
    found = standing_of(fake.context, fake.vm, NOW)
    assert (found.consistency, found.source) == (worth, node)
    assert "nothing was written since 'a'" in found.note
    taken = checkpoint(fake.context, "web1", name="b", required=CRASH)
    assert (taken.consistency, taken.off, taken.writers) == (worth, True, (WRITER,))
    assert "nothing was written since 'a'" in taken.warnings[0]


@pytest.mark.parametrize(("clean", "expected"), [(True, APPLICATION), (False, CRASH)])
def test_what_was_written_since_is_judged_by_how_it_ended(clean, expected, fake):
    """Broken: what a guest wrote since the restore would be vouched for by those who never saw it."""
    restored(fake, FILESYSTEM)
    fake.vm.start()
    fake.vm.write("vda", 0, "x")
    fake.vm.power_off(clean=clean)
    assert standing_of(fake.context, fake.vm, NOW) == Standing(expected)


def test_what_became_of_what_was_restored_must_be_known(fake):
    """Broken: disks that somebody replaced would be called consistent for how a guest ended long before."""
    restored(fake, APPLICATION)
    fake.vm.clean = True
    fake.vm.xml = fake.vm.xml.replace("/i/now", fake.host.storage.make("/i/other"))
    del fake.host.storage.files["/i/now"]
    assert standing_of(fake.context, fake.vm, {"/i/other"}) == Standing(CRASH)


def test_a_disk_that_did_not_go_back_with_the_others_spoils_them(fake):
    """Broken: disks of two different times would be called consistent with each other."""
    restored(fake, APPLICATION)
    fake.vm.clean = True
    assert standing_of(fake.context, fake.vm, NOW | {"/i/vdb"}) == Standing(CRASH)


@pytest.mark.parametrize("clean", [True, False])
def test_a_checkpoint_that_is_no_longer_there_vouches_for_nothing(clean, fake):
    """Broken: disks would be called consistent by nobody's word, or by a shutdown before what is on them."""
    restored(fake, APPLICATION)
    fake.vm.clean = clean
    fake.catalog.checkpoints.set_head(KEY, None, left_of(fake))
    assert standing_of(fake.context, fake.vm, NOW) == Standing(CRASH)


def test_a_vm_stands_at_the_checkpoint_it_was_put_back_to_until_somebody_writes(fake):
    """Broken: a restore of what is there already would be done again, or one that is needed be left out."""
    node = restored(fake, APPLICATION)
    assert has_content_of(fake.context, fake.vm, node)
    assert not has_content_of(fake.context, fake.vm, at("b", "/i/vda.qcow2"))
    fake.vm.start()
    assert not has_content_of(fake.context, fake.vm, node)
    fake.vm.write("vda", 0, "x")
    fake.vm.power_off(clean=True)
    assert not has_content_of(fake.context, fake.vm, node)


@pytest.mark.parametrize("how", ["no record", "an empty record", "another disk", "its image is gone"])
def test_what_is_not_known_is_not_where_a_vm_stands(how, fake):
    """Broken: a restore would be left out of disks that somebody has changed since."""
    node = restored(fake, APPLICATION)
    if how == "no record":
        fake.catalog.checkpoints.set_untouched(KEY, None)
    elif how == "an empty record":
        fake.catalog.checkpoints.set_untouched(KEY, Untouched({}))
    elif how == "another disk":
        fake.vm.xml = fake.vm.xml.replace("/i/now", fake.host.storage.make("/i/other"))
    else:
        del fake.host.storage.files["/i/now"]
    assert not has_content_of(fake.context, fake.vm, node)


@pytest.mark.parametrize(
    ("worth", "required"), [(CRASH, CRASH), (APPLICATION, APPLICATION), (APPLICATION, FILESYSTEM), (FILESYSTEM, CRASH)]
)
def test_what_is_worth_what_is_required_is_taken(worth, required, fake):
    """Broken: a checkpoint would be refused although it is good enough."""
    restored(fake, worth)
    assert plan(fake.context, fake.vm, "b", Settings(require=required)).off


@pytest.mark.parametrize(("worth", "required"), [(CRASH, APPLICATION), (CRASH, FILESYSTEM), (FILESYSTEM, APPLICATION)])
def test_less_than_what_is_required_is_refused_with_what_to_do(worth, required, fake):
    """Broken: a checkpoint would be kept that its user did not want."""
    restored(fake, worth)
    says = f"web1 is off.*only be {worth.value}-consistent, {required.value} is required"
    with pytest.raises(ConsistencyError, match=says) as refusal:
        plan(fake.context, fake.vm, "b", Settings(require=required))
    assert "--require crash" in refusal.value.hint


def test_a_vm_that_somebody_starts_meanwhile_is_not_switched(fake, monkeypatch):
    """Broken: the VM would write to the image that the checkpoint consists of."""
    before, redefine = fake.vm.xml, fake.vm.redefine

    def start_first(xml: str) -> None:
        monkeypatch.setattr(fake.vm, "redefine", redefine)
        fake.vm.start()
        redefine(xml)

    monkeypatch.setattr(fake.vm, "redefine", start_first)
    with pytest.raises(RefusedError, match="somebody started"):
        checkpoint(fake.context, "web1", required=CRASH)
    assert (fake.vm.xml, fake.vm.sources()) == (before, {"vda": "/i/vda.qcow2"})
    assert fake.tree().nodes == ()
    assert fake.host.storage.files.keys() == {"/i/vda.qcow2"}


# -- over whole operations


def label(fake: Fake, name: str) -> Consistency:
    return checkpoint(fake.context, "web1", name=name, required=CRASH).consistency


def test_two_checkpoints_of_one_state_are_worth_the_same(fake):
    """Broken: the second would be called application-consistent for a shutdown that was long before what is on the disks."""
    assert label(fake, "crash") is CRASH
    fake.vm.start()
    fake.vm.write("vda", 0, "x")
    fake.vm.power_off(clean=True)
    assert label(fake, "clean") is APPLICATION
    assert label(fake, "clean again") is APPLICATION
    restore(fake.context, reference("crash"), discard_current=True)
    assert [label(fake, "one"), label(fake, "two"), label(fake, "three")] == [CRASH] * 3
    restore(fake.context, reference("clean"), discard_current=True)
    assert label(fake, "clean once more") is APPLICATION


@pytest.mark.parametrize(
    "deleted", [["left"], ["crash"], ["left", "root"], ["crash", "root"], ["left", "root", "crash"]], ids=" ".join
)
def test_a_merge_makes_what_was_restored_worth_no_more(deleted, fake):
    """Broken: a crash image would be taken for what a clean guest left, or for a better checkpoint below it. Merging what is
    deleted touches the files."""
    fake.vm.clean = True
    assert label(fake, "root") is APPLICATION
    fake.vm.clean = False
    assert restored_label(fake, "root", "left") is APPLICATION
    fake.vm.start()
    fake.vm.power_off()
    restore(fake.context, reference("root"), discard_current=True)
    fake.vm.start()
    fake.vm.write("vda", 0, "x")
    fake.vm.power_off()
    assert label(fake, "crash") is CRASH
    fake.vm.start()
    fake.vm.power_off(clean=True)
    restore(fake.context, reference("crash"), discard_current=True)
    for name in deleted:
        delete(fake.context, [reference(name)])
    assert fake.host.storage.blocks(fake.vm.sources()["vda"]) == {0: "x"}
    assert label(fake, "new") is CRASH


def restored_label(fake: Fake, name: str, new: str) -> Consistency:
    restore(fake.context, reference(name), discard_current=True)
    return label(fake, new)


@pytest.mark.parametrize("running", [True, False], ids=["merged while it ran", "merged before"])
def test_a_guest_that_ran_since_is_judged_by_how_it_ended_whatever_was_merged(running, fake):
    """Broken: no application-consistent checkpoint could be had of the VM any more, though it is shut down as it should be."""
    label(fake, "crash")
    restore(fake.context, reference("crash"), discard_current=True)
    if not running:
        delete(fake.context, [reference("crash")])
    fake.vm.start()
    fake.vm.write("vda", 0, "x")
    if running:
        delete(fake.context, [reference("crash")])
    fake.vm.power_off(clean=True)
    assert label(fake, "new") is APPLICATION


def test_nothing_is_kept_of_a_checkpoint_that_is_worth_too_little(fake):
    """Broken: a refused checkpoint would leave files, or put the VM on new images."""
    before = dict(fake.host.storage.files), fake.vm.xml
    with pytest.raises(ConsistencyError):
        checkpoint(fake.context, "web1")
    assert (fake.host.storage.files, fake.vm.xml) == before
    assert fake.tree().nodes == ()
