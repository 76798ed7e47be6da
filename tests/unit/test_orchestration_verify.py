"""`quiesce verify` from end to end on a host in memory, killed at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from quiesce.catalog import journal
from quiesce.guests.scripted import ScriptedGuest
from quiesce.hypervisor import domain_xml
from quiesce.model.errors import BusyError, HypervisorError, NoSpaceError, ProofError, RefusedError, UsageError
from quiesce.model.grades import Consistency, Grade
from quiesce.model.names import TRIAL_PREFIX, CheckpointReference
from quiesce.model.proof import ProofState
from quiesce.model.starts import Did, Start
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.export import export
from quiesce.operations.import_ import import_vm
from quiesce.operations.rebuild import rebuild
from quiesce.operations.tree import tree
from quiesce.operations.verify import Proven, verify
from quiesce.operations.vms import vms
from quiesce.wire.messages import Verified
from tests.unit.fake_host import FakeVm
from tests.unit.world import World

GOOD = Start("postgresql:main", "postgresql", did=Did.NOTHING)
A = CheckpointReference("web1", "a")


class Killed(BaseException):
    """Nothing of ours runs after this."""


@pytest.fixture
def vm(world: World, monkeypatch: pytest.MonkeyPatch) -> FakeVm:
    """It runs, and has a checkpoint `a`; a copy of it starts as it should."""
    monkeypatch.setattr("quiesce.operations.copies.LATE_S", 0.0)
    vm = world.vm()
    vm.xml = vm.xml.replace("<devices>", "<memory unit='MiB'>512</memory><os><type arch='x86_64'>hvm</type></os><devices>")
    world.take(vm)
    world.guests[TRIAL_PREFIX] = ScriptedGuest()
    says(world, GOOD)
    return vm


def says(world: World, *starts: Start) -> None:
    world.guests[TRIAL_PREFIX].verified = Verified(starts, (), 4000)


def run(world: World, **more: float) -> Proven:
    return verify(world.context, A, **more)


def nothing_of_a_copy(world: World) -> None:
    assert [vm.name for vm in world.host.vms if vm.name.startswith(TRIAL_PREFIX)] == []
    assert [path for path in world.host.storage.files if TRIAL_PREFIX in path] == []
    keys = world.catalog.vms("host1")
    assert [each for key in keys for each in journal.interrupted(world.catalog, key)] == []


def test_a_proof_belongs_to_its_checkpoint(world, vm):
    """Broken: a proof would be shown nowhere, or the copy be left running on production's images."""
    before = dict(world.host.storage.files["/i/web1.qcow2"].blocks), vm.definition(), vm.sources()
    proven = run(world)
    assert (proven.proof.state, proven.recorded, proven.proof.boot_ms) == (ProofState.PROVEN, True, 4000)
    (node,) = tree(world.context, "web1").checkpoints
    assert node.proof == proven.proof
    assert (dict(world.host.storage.files["/i/web1.qcow2"].blocks), vm.definition(), vm.sources()) == before
    nothing_of_a_copy(world)
    assert doctor(world.context, "web1", repair=False)[0].found == ()


def test_the_copy_reads_the_checkpoint_and_writes_elsewhere(world, vm):
    """Broken: what the copy writes would be in the checkpoint, or it would show another state."""
    seen = {}

    def look(step: str) -> None:
        (copy,) = (each for each in world.host.vms if each.name.startswith(TRIAL_PREFIX))
        vm.write("vda", 1, "meanwhile")
        copy.write("vda", 2, "by the copy")
        seen.update(world.content(copy), name=copy.name, generation=domain_xml.generation_id(copy.xml))

    world.guests[TRIAL_PREFIX].on_step = look
    run(world)
    assert (seen[0], seen[2], seen.get(1)) == ("at first", "by the copy", None)
    assert world.content(vm) == {0: "at first", 1: "meanwhile"}
    assert world.host.storage.blocks("/i/web1.qcow2") == {0: "at first"}


@pytest.mark.parametrize("wrong", [replace(GOOD, did=Did.REDO), replace(GOOD, failure="page 3 is corrupt")])
def test_a_claim_that_does_not_hold_is_an_error_and_recorded(wrong, world, vm):
    """Broken: a script would go on with a checkpoint that is not what it claims to be."""
    says(world, wrong)
    with pytest.raises(ProofError, match="is not what it claims to be") as raised:
        run(world)
    assert raised.value.exit_code == 12
    assert raised.value.details["recorded"]
    (node,) = tree(world.context, "web1").checkpoints
    assert node.proof.differs
    assert node.consistency.value == "application"
    nothing_of_a_copy(world)


def test_a_recovery_that_nobody_denied_is_no_error(world, vm):
    """Broken: each crash-consistent checkpoint would be called a lie."""
    world.guests["web1"].writers = tuple(replace(writer, grade=Grade.CRASH) for writer in world.guests["web1"].writers)
    world.take(vm, "b", Consistency.FILESYSTEM)
    says(world, replace(GOOD, did=Did.REDO, redo_bytes=17))
    found = verify(world.context, CheckpointReference("web1", "b"))
    assert (found.proof.state, found.proof.writers[0].redo_bytes) == (ProofState.RECOVERED, 17)


def test_a_guest_that_does_not_come_up_failed(world, vm):
    """Broken: the command would wait for ever, or say nothing of why."""
    world.host.comes_up = False
    with pytest.raises(ProofError, match="did not come up in time"):
        run(world, timeout_s=0.01)
    nothing_of_a_copy(world)


def test_whenever_it_is_killed_doctor_removes_all_of_the_copy(world, vm):
    """Broken: a killed verification would leave a VM that runs, or files that nobody dares to remove."""
    steps = count(world)
    assert steps > 6
    for number in range(steps):
        kill_at(world, number)
        with pytest.raises(Killed):
            run(world)
        world.host.on_step = lambda: None
        left = doctor(world.context, None, repair=True)
        assert all(each.vm in ("web1", vm.uuid) for each in left), left
        nothing_of_a_copy(world)
        assert world.names(vm) == ["a"]
        assert doctor(world.context, "web1", repair=True)[0].found == ()
        assert world.content(vm) == {0: "at first"}
    assert run(world).proof.state is ProofState.PROVEN


@pytest.mark.parametrize("step", range(8))
def test_killed_between_its_notes(step, world, vm, monkeypatch):
    """Broken: an operation whose first step was never written would be found for ever, and never mended."""
    left = [step]

    def intend(self: journal.Journal, what: object) -> int:
        if not left[0]:
            kill_at(world, 0)
            raise Killed
        left[0] -= 1
        return original(self, what)

    original = journal.Journal.intend
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(journal.Journal, "intend", intend)
        patch.setattr(journal.Journal, "finish", lambda *_: None)
        run(world)
        raise Killed  # it has fewer steps
    world.host.on_step = lambda: None
    doctor(world.context, None, repair=True)
    nothing_of_a_copy(world)
    assert [each.found for each in doctor(world.context, None, repair=False)] == [()]


def count(world: World) -> int:
    steps = [0]

    def step() -> None:
        steps[0] += 1

    world.host.on_step = step
    run(world)
    world.host.on_step = lambda: None
    return steps[0]


def kill_at(world: World, number: int) -> None:
    """From this step on, nothing of ours takes effect any more."""
    steps = [0]

    def step() -> None:
        steps[0] += 1
        if steps[0] > number:
            raise Killed

    world.host.on_step = step


def killed_while_the_copy_runs(world: World, run: Callable[[World], object] = run) -> None:
    def kill(_step: str) -> None:
        kill_at(world, 0)
        raise Killed

    world.guests[TRIAL_PREFIX].on_step = kill
    with pytest.raises(Killed):
        run(world)
    world.host.on_step = lambda: None
    world.guests[TRIAL_PREFIX].on_step = lambda _: None


def test_the_next_verification_removes_what_a_killed_one_left(world, vm):
    """Broken: copies would pile up until the host has no memory."""
    killed_while_the_copy_runs(world)
    run(world)
    nothing_of_a_copy(world)
    assert "the copy of an interrupted verification was removed" in world.warnings()


def test_doctor_names_a_copy_that_was_left_and_leaves_it_alone(world, vm):
    """Broken: `doctor` without --repair would change something, or say nothing."""
    killed_while_the_copy_runs(world)
    (found,) = doctor(world.context, "web1", repair=False)
    assert "the verification begun at" in found.found[0]
    assert any(each.name.startswith(TRIAL_PREFIX) for each in world.host.vms)
    doctor(world.context, "web1", repair=True)
    nothing_of_a_copy(world)


def test_what_libvirt_adds_to_the_console_goes_too(world, vm):
    """Broken: a talkative guest would leave a directory with old pieces of its log."""

    def rotate(_step: str) -> None:
        (console,) = (path for path in world.host.storage.files if path.endswith("vda.qcow2") and TRIAL_PREFIX in path)
        world.host.storage.make(console.replace("vda.qcow2", "console.log.0"), format="raw")

    world.guests[TRIAL_PREFIX].on_step = rotate
    run(world)
    nothing_of_a_copy(world)


def test_an_error_leaves_nothing(world, vm):
    """Broken: libvirt's refusal would leave overlays beside production's images."""

    def refuse(_xml: str) -> None:
        raise HypervisorError("libvirt refuses")

    world.host.start_copy = refuse
    with pytest.raises(HypervisorError):
        run(world)
    nothing_of_a_copy(world)


def test_a_proof_is_void_when_an_image_changes(world, vm):
    """Broken: a checkpoint that somebody wrote into would still be called proven."""
    run(world)
    world.host.storage.touch("/i/web1.qcow2")
    (node,) = tree(world.context, "web1").checkpoints
    assert (node.proof, node.consistency.value) == (None, "crash")
    doctor(world.context, "web1", repair=True)
    (node,) = world.tree(vm).checkpoints
    assert node.proof is None


def test_a_changed_checkpoint_can_be_tried(world, vm):
    """Broken: nobody could learn what is left of a checkpoint that somebody wrote into."""
    world.host.storage.touch("/i/web1.qcow2")
    says(world, replace(GOOD, did=Did.REDO))
    found = run(world)
    assert (found.proof.state, found.proof.differs, found.recorded) == (ProofState.RECOVERED, False, False)
    assert world.tree(vm).checkpoints[0].consistency.value == "application"  # `quiesce verify --content` may know it again


def test_an_image_that_changes_meanwhile_leaves_no_proof(world, vm):
    """Broken: the proof of another content would stand at the checkpoint."""
    world.guests[TRIAL_PREFIX].on_step = lambda _: world.host.storage.touch("/i/web1.qcow2")
    assert not run(world).recorded
    assert world.tree(vm).checkpoints[0].proof is None


def test_a_proof_survives_a_lost_catalog_an_export_and_a_rename(world, vm, tmp_path):
    """Broken: a proof would be gone with the catalog that it was found under."""
    proof = run(world).proof
    export(world.context, A, "/e")
    later = world.without_catalog(tmp_path / "later")
    rebuild(later.context)
    (node,) = tree(later.context, "web1").checkpoints
    assert node.proof == proof
    assert import_vm(world.context, "/e", to="/t", name="web2").proof == proof


def test_production_goes_on_and_merges_wait(world, vm):
    """Broken: a checkpoint would be refused, or an image be merged while the copy reads it."""

    def meanwhile(_step: str) -> None:
        world.take(vm, "b")
        deleted = delete(world.context, [A])
        assert deleted.waiting

    world.guests[TRIAL_PREFIX].on_step = meanwhile
    assert not run(world).recorded
    assert world.names(vm) == ["b"]
    nothing_of_a_copy(world)


def test_no_copy_is_made_where_there_is_no_room(world, vm):
    """Broken: the copy would fill the disk, or the memory, that production needs."""
    world.host.storage.free = 2**28
    with pytest.raises(NoSpaceError):
        run(world)
    world.host.storage.free, world.host.memory = 2**40, 2**28
    with pytest.raises(RefusedError, match="256 MiB of memory free, and the copy of web1 would take 512"):
        run(world)
    nothing_of_a_copy(world)
    assert run(world, memory=2**27).proof.state is ProofState.PROVEN


def test_a_copy_that_ran_out_of_room_proves_nothing(world, vm):
    """Broken: a full disk of the host would be shown as damage of the checkpoint."""

    def fill(_step: str) -> None:
        world.host.storage.free = 1024

    world.guests[TRIAL_PREFIX].on_step = fill
    with pytest.raises(NoSpaceError):
        run(world)
    assert world.tree(vm).checkpoints[0].proof is None
    nothing_of_a_copy(world)


def test_one_at_a_time(world, vm, monkeypatch):
    """Broken: two copies would run on a host that has room for one."""
    monkeypatch.setattr("quiesce.catalog.lock.PATIENCE_S", 0.0)
    seen = []

    def second(_step: str) -> None:
        world.guests[TRIAL_PREFIX].on_step = lambda _: None
        with pytest.raises(BusyError, match="quiesce verify web1@a"):
            run(world)
        seen.append(run(world, at_once=2).proof.state)

    world.guests[TRIAL_PREFIX].on_step = second
    run(world)
    assert seen == [ProofState.PROVEN]


def test_copies_are_no_vms_of_the_users(world, vm):
    """Broken: somebody would take a checkpoint of a copy, or wonder whose VM it is."""
    names = []
    world.guests[TRIAL_PREFIX].on_step = lambda _: names.extend(each.name for each in vms(world.context))
    run(world)
    assert names == ["web1"]


@pytest.mark.parametrize("more", [{"timeout_s": 0}, {"timeout_s": 4000}, {"at_once": 0}])
def test_limits_that_make_no_sense(more, world, vm):
    """Broken: the command would fail in the middle."""
    with pytest.raises(UsageError):
        run(world, **more)
