"""`quiesce settle` from end to end on a host in memory, killed at every step."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from quiesce.catalog import journal
from quiesce.guests import scripted
from quiesce.guests.scripted import ScriptedGuest
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.domain_xml import Channel
from quiesce.hypervisor.events import Lifecycle, PowerChange
from quiesce.model.errors import BusyError, CancelledError, ConsistencyError, NameTakenError, ProofError, RefusedError
from quiesce.model.grades import Consistency, Grade
from quiesce.model.names import TRIAL_PREFIX, CheckpointReference
from quiesce.model.proof import ProofState
from quiesce.model.starts import Did, Start
from quiesce.model.tree import Checkpoint, Kind
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.export import export
from quiesce.operations.import_ import import_vm
from quiesce.operations.rebuild import rebuild
from quiesce.operations.settle import settle
from quiesce.operations.tree import tree
from quiesce.operations.verify import verify
from quiesce.wire.messages import PORT_NAME, Verified
from tests.unit.fake_host import FakeVm
from tests.unit.test_orchestration_group_verify import MACHINE
from tests.unit.test_orchestration_verify import Killed, kill_at, killed_while_the_copy_runs, nothing_of_a_copy
from tests.unit.world import World

A = CheckpointReference("web1", "a")
SETTLED = CheckpointReference("web1", "a settled")
RECOVERED = Start("postgresql:main", "postgresql", did=Did.REDO, redo_bytes=17, redo_from="0/80", redo_to="0/91")
NAMED = CheckpointReference("web1", "one")


@pytest.fixture
def vm(world: World, monkeypatch: pytest.MonkeyPatch) -> FakeVm:
    """It runs, and has a crash-consistent checkpoint `a`. A copy of it recovers, writes, and heeds the power button."""
    monkeypatch.setattr("quiesce.operations.copies.LATE_S", 0.0)
    monkeypatch.setattr("quiesce.operations.settle.LATE_EVENT_S", 0.0)
    vm = world.vm()
    vm.xml = vm.xml.replace("<devices>", MACHINE)
    world.guests["web1"].writers = (scripted.writer("postgresql:main", grade=Grade.CRASH),)
    world.take(vm, "a", Consistency.FILESYSTEM)
    vm.write("vda", 1, "meanwhile")
    world.guests[TRIAL_PREFIX] = ScriptedGuest()
    world.guests[TRIAL_PREFIX].on_step = lambda _: copy_of(world).write("vda", 2, "recovered")
    says(world, RECOVERED)
    return vm


def copy_of(world: World) -> FakeVm:
    (copy,) = (vm for vm in world.host.vms if vm.name.startswith(TRIAL_PREFIX))
    return copy


def says(world: World, *starts: Start) -> None:
    world.guests[TRIAL_PREFIX].verified = Verified(starts, (), 4000)


def run(world: World, **more: object) -> Checkpoint:
    return settle(world.context, A, **more)


def as_before(world: World, vm: FakeVm) -> None:
    nothing_of_a_copy(world)
    assert world.names(vm) == ["a"]
    assert journal.interrupted(world.catalog, vm.key) == []
    assert len([path for path in world.host.storage.files if path.endswith(".qcow2")]) == 2
    assert world.content(vm) == {0: "at first", 1: "meanwhile"}
    assert doctor(world.context, "web1", repair=False)[0].found == ()


def test_what_the_copy_recovered_is_a_checkpoint_below_the_old_one(world, vm):
    """Broken: the recovery would be done again at each restore; or the old checkpoint, or the VM, be changed by it."""
    before = vm.definition(), vm.sources(), world.tree(vm).head_parent
    settled = run(world)
    old, new = tree(world.context, "web1").checkpoints
    assert (new, new.name, new.parent, new.kind, new.off) == (settled, "a settled", old.id, Kind.SETTLED, True)
    assert new.consistency is Consistency.APPLICATION
    (writer,) = new.writers
    assert (writer.grade, writer.position) == (Grade.CLEAN, {})
    assert writer.reason == "it recovered when it started: 17 bytes of its log, from 0/80 to 0/91, then it was shut down"
    assert world.host.storage.blocks(new.disks[0].path) == {0: "at first", 2: "recovered"}
    assert world.host.storage.blocks(old.disks[0].path) == {0: "at first"}
    assert (vm.definition(), vm.sources(), world.tree(vm).head_parent) == before
    assert world.content(vm) == {0: "at first", 1: "meanwhile"}
    nothing_of_a_copy(world)
    assert doctor(world.context, "web1", repair=False)[0].found == ()


def test_it_is_a_checkpoint_like_others(world, vm, tmp_path):
    """Broken: it could not be restored, verified, exported, deleted, or found again when the catalog is lost."""
    run(world)
    says(world, replace(RECOVERED, did=Did.NOTHING))
    world.guests[TRIAL_PREFIX].on_step = lambda _: None
    assert verify(world.context, SETTLED).proof.state is ProofState.PROVEN
    export(world.context, SETTLED, "/e")
    import_vm(world.context, "/e", to="/t", name="web2")
    world.restore(vm, "a settled", discard_current=True)
    assert world.content(vm) == {0: "at first", 2: "recovered"}
    checkpoint(world.context, "web1", name="after")
    assert world.tree(vm).find("after").consistency is Consistency.APPLICATION  # nothing was written since
    delete(world.context, [A])
    assert world.names(vm) == ["a settled", "after"]
    assert world.content(vm) == {0: "at first", 2: "recovered"}
    later = world.without_catalog(tmp_path / "later")
    rebuild(later.context)
    assert [node.kind for node in tree(later.context, "web1").checkpoints] == [Kind.SETTLED, Kind.PRODUCTION]
    delete(world.context, [SETTLED])
    assert world.content(vm) == {0: "at first", 2: "recovered"}


def test_what_the_disks_of_a_vm_that_is_off_are_worth_stays(world, vm):
    """Broken: a checkpoint of a restored VM that was not started yet would be called crash-consistent."""
    world.guests["web1"].writers = (scripted.writer("postgresql:main"),)
    world.take(vm, "good")
    world.restore(vm, "good", discard_current=True)
    run(world)
    assert checkpoint(world.context, "web1", name="again").consistency is Consistency.APPLICATION


def test_an_application_of_which_nothing_is_known_keeps_its_grade(world, vm):
    """Broken: a program that nobody asked would be called clean."""
    world.guests["web1"].writers = tuple(
        scripted.writer(id, grade=grade)
        for id, grade in (("postgresql:main", Grade.STANDS_STILL), ("unit:shop", Grade.HELD), ("unit:old", Grade.CRASH))
    )
    world.take(vm, "b", Consistency.FILESYSTEM)
    says(world, RECOVERED, Start("unit:shop", "unit"), Start("unit:old", "unit"))
    settled = settle(world.context, CheckpointReference("web1", "b"), name="one")
    assert {writer.id: writer.grade for writer in settled.writers} == {
        "postgresql:main": Grade.CLEAN,
        "unit:shop": Grade.HELD,
        "unit:old": Grade.CRASH,
    }
    assert settled.consistency is Consistency.FILESYSTEM


def test_applications_that_the_old_checkpoint_does_not_know(world, vm):
    """Broken: a checkpoint that was taken without the agent would be called application-consistent whatever runs in it."""
    vm.channels = {}
    world.take(vm, "b", Consistency.CRASH)
    says(world, RECOVERED, Start("filesystems", "filesystem", did=Did.NOTHING), Start("check:books", "check", checks=("x",)))
    settled = settle(world.context, CheckpointReference("web1", "b"), name="one")
    assert [(writer.id, writer.application, writer.grade) for writer in settled.writers] == [
        ("postgresql:main", "postgresql", Grade.CLEAN)
    ]
    assert settled.consistency is Consistency.APPLICATION
    says(world, RECOVERED, Start("unit:shop", "unit"))
    settled = settle(world.context, CheckpointReference("web1", "b"), name="two")
    assert [writer.grade for writer in settled.writers] == [Grade.CLEAN, Grade.CRASH]
    assert settled.consistency is Consistency.FILESYSTEM


def test_what_fails_leaves_nothing(world, vm):
    """Broken: a checkpoint would be called clean whose applications never started, or whose guest was cut off."""
    says(world, replace(RECOVERED, failure="page 3 is corrupt"))
    with pytest.raises(ProofError, match="cannot be settled: postgresql:main page 3 is corrupt"):
        run(world)
    as_before(world, vm)
    says(world, RECOVERED)
    world.host.heeds_the_button = False
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConsistencyError, match="it still runs after 0 s"):
        patch.setattr("quiesce.operations.settle.SHUT_DOWN_S", 0.0)
        run(world)
    as_before(world, vm)

    def crash(_step: str) -> None:
        copy_of(world).shut_down = lambda: world.host.vms.remove(copy_of(world))

    world.guests[TRIAL_PREFIX].on_step = crash
    with pytest.raises(ConsistencyError, match="it ended, and not by itself"):
        run(world)
    as_before(world, vm)

    def full(_step: str) -> None:
        copy_of(world).shut_down = lambda: setattr(copy_of(world), "paused", True)

    world.guests[TRIAL_PREFIX].on_step = full
    with pytest.raises(ConsistencyError, match="an error of the storage"):
        run(world)
    as_before(world, vm)
    with pytest.raises(CancelledError):
        settle(replace(world.context, cancelled=lambda: bool(world.guests[TRIAL_PREFIX].story)), A)
    as_before(world, vm)


def test_another_vm_that_shuts_down_meanwhile(world, vm):
    """Broken: the copy's disks would be recorded while it still runs, because some other VM went off."""
    world.host.heeds_the_button = False

    def other(_step: str) -> None:
        copy = copy_of(world)
        event = Lifecycle(vm.uuid, vm.name, PowerChange.SHUT_DOWN, datetime.now(UTC))
        copy.shut_down = lambda: world.host.events.append(event)

    world.guests[TRIAL_PREFIX].on_step = other
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConsistencyError, match="it still runs"):
        patch.setattr("quiesce.operations.settle.SHUT_DOWN_S", 0.1)
        run(world)
    as_before(world, vm)


def test_qemus_agent_is_not_waited_for_but_ours(world, vm):
    """Broken: the guest would be asked as soon as qemu-guest-agent is there, by which it is shut down, and before ours is."""
    port = "org.qemu.guest_agent.0"
    vm.xml = vm.xml.replace("<devices>", f"<devices>{domain_xml.channel(port)}{domain_xml.channel(PORT_NAME)}")
    world.take(vm, "b", Consistency.FILESYSTEM)
    world.host.comes_up = False
    start = world.host.start_copy

    def started(xml: str) -> None:
        start(xml)
        copy_of(world).channels = {port: Channel(port, connected=True)}

    world.host.start_copy = started
    with pytest.raises(ProofError, match="did not come up in time"):
        settle(world.context, CheckpointReference("web1", "b"), timeout_s=0.01)
    assert world.guests[TRIAL_PREFIX].story == []


def test_what_is_refused(world, vm):
    """Broken: a state that nobody vouches for would get the best label; or the copy boot before the name is found taken."""
    with pytest.raises(NameTakenError):
        run(world, name="a")
    with world.context.locked(vm, "delete"), pytest.raises(BusyError):
        run(world)
    world.host.storage.touch("/i/web1.qcow2")
    with pytest.raises(RefusedError, match="cannot be settled as what it was"):
        run(world)
    assert world.guests[TRIAL_PREFIX].story == []
    nothing_of_a_copy(world)


def test_the_vm_is_locked_meanwhile(world, vm):
    """Broken: the checkpoint could be deleted while its copy runs, and the new one have no parent."""
    seen = []

    def delete_it(_step: str) -> None:
        with pytest.raises(BusyError, match="quiesce settle web1"):
            delete(world.context, [A])
        seen.append(True)

    world.guests[TRIAL_PREFIX].on_step = delete_it
    run(world)
    assert seen == [True]


def test_whenever_it_is_killed_nothing_is_lost_or_left(world, vm):
    """Broken: a kill would leave a copy, files that nobody dares to remove, or half a checkpoint."""
    steps = [0]

    def count() -> None:
        steps[0] += 1

    world.host.on_step = count
    delete(world.context, [replace(SETTLED, checkpoint=run(world).id)])
    assert steps[0] > 8
    kept = 0
    for number in range(steps[0]):
        world.guests[TRIAL_PREFIX].on_step = lambda _: copy_of(world).write("vda", 2, "recovered")
        kill_at(world, number)
        try:
            run(world, name="one")
        except Killed:
            pass
        else:
            break  # it has fewer steps
        finally:
            world.host.on_step = lambda: None
            world.host.events.clear()
        doctor(world.context, None, repair=True)
        nothing_of_a_copy(world)
        assert [each.found for each in doctor(world.context, None, repair=False)] == [()], number
        if "one" in world.names(vm):
            kept += 1
            assert world.host.storage.blocks(world.tree(vm).find("one").disks[0].path) == {0: "at first", 2: "recovered"}
            delete(world.context, [NAMED])
        as_before(world, vm)
    assert kept > 0


def test_the_vms_next_operation_mends_what_a_kill_left(world, vm):
    """Broken: nobody could take a checkpoint until somebody calls `doctor`."""
    killed_while_the_copy_runs(world, run)
    assert copy_of(world)
    world.take(vm, "b", Consistency.FILESYSTEM)
    nothing_of_a_copy(world)
    assert "the copy of an interrupted verification was removed" in world.warnings()
    assert doctor(world.context, "web1", repair=False)[0].found == ()


@pytest.mark.parametrize("step", range(14))
def test_killed_between_its_notes(step, world, vm, monkeypatch):
    """Broken: an operation whose first step was never written would be found for ever, and never mended."""
    left = [step]

    def noting(name: str) -> object:
        original = getattr(journal.Journal, name)

        def note(self: journal.Journal, *arguments: object) -> object:
            if not left[0]:
                kill_at(world, 0)
                raise Killed
            left[0] -= 1
            return original(self, *arguments)

        return note

    with monkeypatch.context() as patch, pytest.raises(Killed):
        for name in ("intend", "done"):
            patch.setattr(journal.Journal, name, noting(name))
        patch.setattr(journal.Journal, "finish", lambda *_: None)
        run(world)
        raise Killed  # it has fewer steps
    world.host.on_step = lambda: None
    doctor(world.context, None, repair=True)
    nothing_of_a_copy(world)
    assert [each.found for each in doctor(world.context, None, repair=False)] == [()]
    if "a settled" in world.names(vm):
        delete(world.context, [SETTLED])
    as_before(world, vm)
