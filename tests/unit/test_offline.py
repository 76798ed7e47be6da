"""taking/offline.py: what the disks of a VM that is off are worth."""

from __future__ import annotations

import pytest

from quiesce.model.errors import ConsistencyError
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.reports import WriterReport
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.restore import restore
from quiesce.taking import offline
from quiesce.taking.part import Evidence
from tests.unit.conftest import Fake, reference
from tests.unit.test_survey import at

APPLICATION, FILESYSTEM, CRASH = Consistency.APPLICATION, Consistency.FILESYSTEM, Consistency.CRASH
WRITER = WriterReport("postgresql:17/main", "postgresql", "17.2", Level.BACK_END, Grade.NIL_REDO)
NOW = {"/i/now"}


def restored(fake: Fake, consistency: Consistency, **others: object) -> str:
    """A checkpoint as a restore left it, with the VM on it. Returns when the VM's image was written."""
    fake.add(at("a", "/i/vda.qcow2", consistency=consistency, **others))
    fake.own("/i/now", "/i/vda.qcow2")
    written = str(fake.host.files["/i/now"].written)
    fake.catalog.set_head("host1", "uuid-1", "a", {"/i/now": written})
    fake.vm.xml = fake.vm.xml.replace("/i/vda.qcow2", "/i/now")
    return written


@pytest.mark.parametrize(("clean", "expected"), [(True, APPLICATION), (False, CRASH)])
def test_what_a_guest_left_that_shut_itself_down_is_consistent(clean, expected, fake):
    """Broken: a VM that was powered off or crashed would be called application-consistent, or a clean one never be."""
    fake.vm.clean = clean
    verdict = offline.judge(fake.context, fake.vm, {"/i/vda.qcow2"})
    assert verdict == Evidence(expected, off=True)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("worth", [APPLICATION, FILESYSTEM, CRASH])
def test_what_was_restored_and_not_started_is_worth_what_the_checkpoint_was(worth, clean, fake):
    """Broken: a crash image would be called better for having been restored to a VM that was once shut down cleanly."""
    restored(fake, worth, writers=(WRITER,))
    fake.vm.clean = clean
    verdict = offline.judge(fake.context, fake.vm, NOW)
    assert (verdict.consistency, verdict.off, verdict.writers) == (worth, True, (WRITER,))
    assert "nothing was written since 'a'" in verdict.warnings[0]


@pytest.mark.parametrize(("clean", "expected"), [(True, APPLICATION), (False, CRASH)])
def test_what_was_written_since_is_judged_by_how_it_ended(clean, expected, fake):
    """Broken: what a guest wrote since the restore would be vouched for by those who never saw it."""
    restored(fake, FILESYSTEM)
    fake.vm.start()
    fake.vm.write("vda", 0, "x")
    fake.vm.power_off(clean=clean)
    assert offline.judge(fake.context, fake.vm, NOW) == Evidence(expected, off=True)


def test_what_became_of_what_was_restored_must_be_known(fake):
    """Broken: disks that somebody replaced would be called consistent for how a guest ended long before."""
    restored(fake, APPLICATION)
    fake.vm.clean = True
    fake.vm.xml = fake.vm.xml.replace("/i/now", fake.host.make("/i/other"))
    del fake.host.files["/i/now"]
    assert offline.judge(fake.context, fake.vm, {"/i/other"}).consistency is CRASH


def test_a_disk_that_did_not_go_back_with_the_others_spoils_them(fake):
    """Broken: disks of two different times would be called consistent with each other."""
    restored(fake, APPLICATION)
    fake.vm.clean = True
    assert offline.judge(fake.context, fake.vm, NOW | {"/i/vdb"}).consistency is CRASH


@pytest.mark.parametrize("clean", [True, False])
def test_a_checkpoint_that_is_no_longer_there_vouches_for_nothing(clean, fake):
    """Broken: disks would be called consistent by nobody's word, or by a shutdown before what is on them."""
    written = restored(fake, APPLICATION)
    fake.vm.clean = clean
    fake.catalog.set_head("host1", "uuid-1", None, {"/i/now": written})
    assert offline.judge(fake.context, fake.vm, NOW).consistency is CRASH


def test_less_than_what_is_required_is_refused_with_what_to_do():
    """Broken: a checkpoint would be kept that its user did not want, or refused although it is good enough."""

    class Named:
        name = "web1"

    with pytest.raises(ConsistencyError, match="only be crash-consistent, application is required") as refusal:
        offline.require(Named(), Evidence(CRASH, off=True), APPLICATION)
    assert "--require crash" in refusal.value.hint
    for verdict, required in ((CRASH, CRASH), (APPLICATION, APPLICATION), (APPLICATION, FILESYSTEM)):
        offline.require(Named(), Evidence(verdict, off=True), required)


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
    assert fake.host.read(fake.vm.sources()["vda"]) == {0: "x"}
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
    before = dict(fake.host.files), fake.vm.xml
    with pytest.raises(ConsistencyError):
        checkpoint(fake.context, "web1")
    assert (fake.host.files, fake.vm.xml) == before
    assert fake.tree().nodes == ()
