"""Checkpoints and restores from end to end on a host in memory, with guests that follow a script: what the host side makes of
what guests, libvirt and strangers do meanwhile. Each test fails if one check of the host side is left out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from quiesce.catalog import journal
from quiesce.catalog.steps import PutBack
from quiesce.disks import images
from quiesce.guests import scripted
from quiesce.model.errors import BusyError, ConsistencyError, HypervisorError, OutcomeUnknownError, RefusedError
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.names import CheckpointReference
from quiesce.model.standing import Untouched
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.group_checkpoint import group_checkpoint
from quiesce.operations.group_restore import group_restore
from quiesce.operations.restore import restore
from quiesce.recovery import recover_all
from quiesce.taking import participant
from tests.unit.fake_host import FakeVm
from tests.unit.world import WINDOW_S

# -- one VM


def test_a_guest_that_holds_gets_its_label_and_hears_of_it(world):
    """Broken: no checkpoint could be had, or its writers would wait to be told for ever."""
    vm = world.vm()
    node = world.take(vm)
    assert (node.consistency, node.kind.value) == (Consistency.APPLICATION, "production")
    assert [writer.id for writer in node.writers] == ["postgresql:main"]
    guest = world.guests["web1"]
    assert guest.story == ["prepare", "hold back-end", "freeze", "thaw", "release back-end", "post-checkpoint"]
    assert (guest.told, guest.closed) == ([True], True)
    assert vm.sources()["vda"] != "/i/web1.qcow2"
    assert node.stall_us > 0
    assert set(node.guest_clock_ns) == {"held", "released"}


def test_a_disk_plugged_in_during_the_window_is_not_passed_over(world):
    """Broken: a database on the new disk would be called application-consistent, and is not in the checkpoint."""
    vm = world.vm()
    world.host.storage.make("/i/new.qcow2")
    vm.on_switch = lambda: vm.plugged.update(vdb="/i/new.qcow2")
    with pytest.raises(ConsistencyError, match="added a disk to the VM"):
        world.take(vm)
    world.nothing_left(vm)
    assert world.take(vm, "b", Consistency.CRASH).consistency is Consistency.CRASH


def test_a_freeze_that_is_not_ours_any_more_is_no_freeze(world):
    """Broken: a platform that thawed and froze again in between would leave a torn image with a good label."""
    vm = world.vm()
    world.guests["web1"].token_at_thaw = "another"  # noqa: S105
    with pytest.raises(ConsistencyError, match="somebody thawed or mounted a filesystem"):
        world.take(vm)
    world.nothing_left(vm)
    assert world.take(vm, "b", Consistency.CRASH).consistency is Consistency.CRASH


def test_a_broken_freeze_is_no_freeze(world):
    """Broken: the guest would say so itself, and not be heard."""
    vm = world.vm()
    world.guests["web1"].unbroken = False
    with pytest.raises(ConsistencyError, match="somebody thawed or mounted a filesystem"):
        world.take(vm)
    world.nothing_left(vm)


@pytest.mark.parametrize("grade", [Grade.CRASH, Grade.REFUSED])
def test_the_label_is_that_of_the_worst_required_writer(world, grade):
    """Broken: a database that was not held would be hidden behind one that was."""
    vm = world.vm(writers=())
    world.guests["web1"].writers = (scripted.writer("one"), scripted.writer("two", grade=grade))
    with pytest.raises(ConsistencyError, match="two"):
        world.take(vm)
    world.nothing_left(vm)
    assert world.take(vm, "b", Consistency.FILESYSTEM).consistency is Consistency.FILESYSTEM


@pytest.mark.parametrize("step", ["prepare", "hold back-end", "freeze", "thaw", "release back-end"])
def test_whatever_fails_nothing_is_left(world, step):
    """Broken: an overlay would stay under a VM whose checkpoint nobody has, or a guest stay frozen."""
    vm = world.vm()
    guest = world.guests["web1"]

    def fail(name: str) -> None:
        if name == step:
            raise HypervisorError("the guest is gone")

    guest.on_step = fail
    vm.write("vda", 1, "before")
    with pytest.raises((ConsistencyError, HypervisorError)):
        world.take(vm)
    guest.on_step = lambda _: None
    world.nothing_left(vm)
    assert world.host.storage.blocks(vm.sources()["vda"]) == {0: "at first", 1: "before"}
    assert guest.told in ([], [False])
    assert world.take(vm, "again").consistency is Consistency.APPLICATION


def test_what_the_guest_wrote_after_a_switch_that_counts_for_nothing_is_kept(world):
    """Broken: acknowledged writes would be lost with the overlay of a failed checkpoint."""
    vm = world.vm()

    def fail(name: str) -> None:
        if name == "thaw":
            vm.write("vda", 2, "after the switch")
            raise HypervisorError("the guest is gone")

    world.guests["web1"].on_step = fail
    with pytest.raises((ConsistencyError, HypervisorError)):
        world.take(vm)
    world.guests["web1"].on_step = lambda _: None
    world.nothing_left(vm)
    assert world.host.storage.blocks("/i/web1.qcow2") == {0: "at first", 2: "after the switch"}


@pytest.fixture
def hanging(world, monkeypatch) -> Iterator[tuple[FakeVm, threading.Event]]:
    """A VM whose switch libvirt does not return from until the event is set; afterwards it may have taken effect."""
    monkeypatch.setattr(participant, "SWITCH_TIMEOUT_S", 0.2)
    vm, go_on = world.vm(), threading.Event()
    vm.on_switch = lambda: go_on.wait(30) and None
    vm.busy = BusyError("libvirt is still taking a snapshot of web1")
    yield vm, go_on
    go_on.set()


def test_a_switch_of_unknown_outcome_is_not_undone(world, hanging):
    """Broken: the overlay would be removed, and libvirt then switch the VM to a file that is gone."""
    vm, go_on = hanging
    with pytest.raises(OutcomeUnknownError):
        checkpoint(world.context, "web1", name="a", window_s=0.5)
    assert len(journal.interrupted(world.catalog, vm.key)) == 1
    overlays = [path for path in world.host.storage.files if path.startswith("/i/web1.vda.")]
    assert len(overlays) == 1
    assert any("not undone yet" in text for text in world.warnings())
    with pytest.raises(BusyError):
        recover_all(world.context, vm)
    assert overlays[0] in world.host.storage.files
    go_on.set()
    for _ in range(500):
        if vm.sources()["vda"] == overlays[0]:
            break
        threading.Event().wait(0.01)
    vm.write("vda", 3, "on the overlay")
    vm.busy = None
    recover_all(world.context, vm)
    world.nothing_left(vm)
    assert world.host.storage.blocks("/i/web1.qcow2") == {0: "at first", 3: "on the overlay"}


# -- restore


def test_a_restore_that_is_recorded_is_not_undone(world, monkeypatch):
    """Broken: what failed afterwards, as a manifest that cannot be written, would throw the VM back, off its catalog's word."""
    vm = world.vm()
    world.take(vm)
    vm.write("vda", 1, "later")
    left = dict(vm.sources())

    write, failed = images.write_manifest, []

    def fail_once(*arguments: Any) -> None:
        if not failed:
            failed.append(True)
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(images, "write_manifest", fail_once)
    with pytest.raises(KeyboardInterrupt):
        restore(world.context, CheckpointReference("web1", "a"))
    tree = world.tree(vm)
    assert tree.head_parent == tree.find("a").id
    assert vm.sources() != left
    assert world.host.storage.blocks(vm.sources()["vda"]) == {0: "at first"}
    (safety,) = [node for node in tree.checkpoints if node.name != "a"]
    assert world.host.storage.blocks(safety.disks[0].path) == {0: "at first", 1: "later"}
    assert journal.interrupted(world.catalog, vm.key) == []


def test_a_restore_that_fails_before_it_defines_leaves_the_vm_where_it_was(world, monkeypatch):
    """Broken: the VM would be based on neither state."""
    vm = world.vm()
    world.take(vm)
    vm.write("vda", 1, "later")
    left, files = dict(vm.sources()), set(world.host.storage.files)

    def fail(*_: object, **__: object) -> None:
        raise HypervisorError("libvirt is gone")

    with monkeypatch.context() as patch, pytest.raises(HypervisorError):
        patch.setattr("quiesce.hypervisor.domain_xml.restored", fail)
        restore(world.context, CheckpointReference("web1", "a"))
    assert vm.sources() == left
    assert set(world.host.storage.files) == files
    assert world.names(vm) == ["a"]
    assert journal.interrupted(world.catalog, vm.key) == []


def test_a_restore_that_was_defined_is_completed_by_whoever_comes_next(world):
    """Broken: the state it left would be lost with the process that was to record it."""
    vm = world.vm()
    node = world.take(vm)
    vm.power_off()
    made = world.host.storage.make("/i/made", "/i/web1.qcow2")
    world.catalog.images.note(vm.key, made)
    operation = journal.Journal(world.catalog, vm.key, "restore")
    step = PutBack(node.id, {"vda": made}, vm.definition(), Untouched({made: world.host.storage.image(made).written}))
    operation.intend(step)
    vm.xml = vm.xml.replace(vm.sources()["vda"], made)
    assert recover_all(world.context, vm)[0].endswith("was completed")
    assert world.tree(vm).head_parent == node.id
    assert world.catalog.checkpoints.untouched(vm.key) == step.untouched


def test_a_restore_looks_at_the_chain_that_it_would_keep(world):
    """Broken: the state to be kept would be recorded as based on a checkpoint that somebody merged into it with virsh."""
    vm = world.vm()
    world.take(vm)
    world.take(vm, "b")
    head = vm.sources()["vda"]
    world.host.storage.files[head].below = None  # somebody pulled all of it into the overlay
    with pytest.raises(RefusedError, match="somebody changed the backing chain"):
        restore(world.context, CheckpointReference("web1", "a"))
    assert vm.active()
    restore(world.context, CheckpointReference("web1", "a"), discard_current=True)
    assert world.host.storage.blocks(vm.sources()["vda"]) == {0: "at first"}


# -- deletion


def test_while_a_merge_runs_the_disks_are_worth_no_more_than_after_a_crash(world, monkeypatch):
    """Broken: if the merge is killed, what it left half done would be called application-consistent."""
    vm = world.vm(running=False)
    vm.clean = True
    world.take(vm)
    world.take(vm, "b")
    assert world.tree(vm).find("b").consistency is Consistency.APPLICATION
    seen: list[Untouched | None] = []
    commit = world.host.storage.commit

    def looking(*arguments: object, **named: object) -> None:
        seen.append(world.catalog.checkpoints.untouched(vm.key))
        commit(*arguments, **named)

    monkeypatch.setattr(world.host.storage, "commit", looking)
    delete(world.context, [CheckpointReference("web1", "a")])
    assert seen == [Untouched({}, Consistency.CRASH)]
    after = world.catalog.checkpoints.untouched(vm.key)
    assert after is not None
    assert (after.worth, set(after.written)) == (Consistency.APPLICATION, set(vm.sources().values()))


def test_a_part_of_a_groups_checkpoint_is_not_deleted_alone(world):
    """Broken: the group's checkpoint could not be restored any more, and nobody was asked."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    with pytest.raises(RefusedError, match="part of the group checkpoint shop@g"):
        delete(world.context, [CheckpointReference("one", "g")])
    assert (world.names(one), world.names(two)) == (["g"], ["g"])
    delete(world.context, [CheckpointReference("one", "g")], break_group=True)
    assert (world.names(one), world.names(two)) == ([], ["g"])


# -- groups


def test_a_group_is_of_one_instant(world):
    """Broken: members would be held and let go one after the other, and their checkpoints disagree."""
    vms = [world.vm(name) for name in ("one", "two", "three")]
    world.group("one", "two", "three")
    story: list[str] = []
    for vm in vms:
        world.guests[vm.name].on_step = story.append
        vm.on_switch = lambda: story.append("switch")
    taken = group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    kinds = [step.split()[0] for step in story if step not in ("prepare", "post-checkpoint")]
    assert kinds == [step for step in ("hold", "freeze", "switch", "thaw", "release") for _ in vms]
    assert {node.consistency for node in taken.checkpoints} == {Consistency.APPLICATION}
    assert taken.part.members == tuple(node.id for node in taken.checkpoints)


@pytest.mark.parametrize("step", ["prepare", "hold back-end", "freeze", "thaw"])
def test_a_group_is_taken_whole_or_not_at_all(world, step):
    """Broken: a group's checkpoint would lack a member, or members stay on overlays of one that does not exist."""
    vms = [world.vm(name) for name in ("one", "two")]
    world.group("one", "two")

    def fail(name: str) -> None:
        if name == step:
            raise HypervisorError("the guest is gone")

    world.guests["two"].on_step = fail
    with pytest.raises((ConsistencyError, HypervisorError)):
        group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    world.guests["two"].on_step = lambda _: None
    for vm in vms:
        world.nothing_left(vm)


def test_a_member_that_was_off_and_is_started_meanwhile_is_noticed(world):
    """Broken: a member that has gone on since would be called of one instant with the others."""
    running, off = world.vm("one"), world.vm("two", running=False)
    off.clean = True
    world.group("one", "two")
    started = []

    def start_the_other(name: str) -> None:
        if name == "freeze" and not started:
            started.append(off.start())

    world.guests["one"].on_step = start_the_other
    with pytest.raises(RefusedError, match="somebody started two"):
        group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    assert (world.names(running), world.names(off)) == ([], [])
    assert world.host.storage.blocks(off.sources()["vda"]) == {0: "at first"}


def test_a_group_goes_back_whole(world):
    """Broken: some members would be put back and others not, and nobody be told."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    for vm in (one, two):
        vm.write("vda", 1, "later")
    result = group_restore(world.context, "shop@g")
    assert [restored.checkpoint.vm_name for restored in result.restored] == ["one", "two"]
    for vm in (one, two):
        assert not vm.active()
        assert world.host.storage.blocks(vm.sources()["vda"]) == {0: "at first"}
        assert journal.interrupted(world.catalog, vm.key) == []


def test_what_would_be_refused_of_one_member_is_refused_before_any_is_touched(world):
    """Broken: half of an application would be put back, and the other half stay where it is."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    world.host.storage.files[two.sources()["vda"]].below = None  # somebody pulled the chain into the overlay
    with pytest.raises(RefusedError, match="somebody changed the backing chain of disk vda"):
        group_restore(world.context, "shop@g")
    assert one.active()
    assert two.active()
    assert (world.names(one), world.names(two)) == (["g"], ["g"])


# -- recovery


def test_an_operation_of_an_unknown_verb_stays_open_and_is_said(world):
    """Broken: what a newer quiesce left half done would be closed as mended, and the VM be used as if it were."""
    vm = world.vm()
    operation = journal.Journal(world.catalog, vm.key, "frobnicate")
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"the frobnicate begun at .* this quiesce cannot recover it") as raised:
            world.take(vm)
        assert "newer" in str(raised.value.hint)
    assert [each.id for each in journal.interrupted(world.catalog, vm.key)] == [operation.id]


def test_an_operation_with_an_unknown_step_stays_open(world, monkeypatch):
    """Broken: half of what a newer quiesce did would be undone, and the rest forgotten."""
    vm = world.vm()
    operation = journal.Journal(world.catalog, vm.key, "restore")
    operation.intend(PutBack("a", {}, "<domain/>", Untouched({})))
    monkeypatch.setattr(journal, "BY_NAME", {})
    with pytest.raises(RefusedError, match="PutBack"):
        recover_all(world.context, vm)
    assert len(journal.interrupted(world.catalog, vm.key)) == 1


def test_every_verb_that_is_journalled_can_be_recovered(world):
    """Broken: a verb added tomorrow would leave what nobody can mend."""
    from quiesce import recovery

    for verb in recovery.VERBS:
        operation = journal.Interrupted("id", verb, "then", ())
        assert callable(recovery.recovery_of(operation))


def test_front_ends_are_held_first_and_released_last(world):
    """Broken: orders would be accepted by a front end whose database is held already, and time out."""
    vm = world.vm()
    world.guests["web1"].writers = (
        scripted.writer("nginx", Level.FRONT_END),
        scripted.writer("postgresql:main", Level.BACK_END),
        scripted.writer("system", Level.SYSTEM),
    )
    world.take(vm)
    assert world.guests["web1"].story[1:-1] == [
        *["hold front-end", "hold back-end", "hold system", "freeze"],
        *["thaw", "release system", "release back-end", "release front-end"],
    ]
