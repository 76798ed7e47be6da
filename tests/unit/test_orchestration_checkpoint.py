"""A checkpoint of a VM from end to end on a host in memory: when it has its label, and that nothing is left of one that failed.
Each test fails if one check of the host side is left out."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from quiesce.guests import scripted
from quiesce.model.errors import BusyError, ConsistencyError, HypervisorError, RefusedError
from quiesce.model.grades import Consistency, Grade, Level, RequiredGrade
from quiesce.model.names import CheckpointReference
from quiesce.model.settings import Settings, Type
from quiesce.model.tree import Kind, Role
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from tests.unit.world import WINDOW_S


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


@pytest.mark.parametrize("grade", [Grade.STANDS_STILL, Grade.HELD])
@pytest.mark.parametrize("by", ["option", "setting"])
def test_a_grade_below_the_required_one_is_refused(world, grade, by):
    """Broken: who asked for nothing in flight would get less, and not hear of it."""
    vm = world.vm(writers=())
    guest = world.guests["web1"]
    guest.writers = (scripted.writer("one"), scripted.writer("two", grade=grade))
    option = RequiredGrade.NIL_REDO if by == "option" else None
    if by == "setting":
        world.catalog.settings.put(vm.key, Settings(require_grade=RequiredGrade.NIL_REDO))
    with pytest.raises(ConsistencyError, match=f"nil-redo is required of every application, and two is {grade.value}"):
        checkpoint(world.context, "web1", required_grade=option, window_s=WINDOW_S)
    world.nothing_left(vm)
    assert guest.asked and guest.asked.nil_redo
    guest.writers = (scripted.writer("one"), replace(scripted.writer("two", grade=grade), required=False))
    node = checkpoint(world.context, "web1", name="b", required_grade=option, window_s=WINDOW_S)
    assert node.consistency is Consistency.APPLICATION


def test_a_grade_that_nobody_requires_is_not_asked_for(world):
    """Broken: every checkpoint would wait for transactions to end, and many never be had."""
    vm = world.vm(writers=())
    guest = world.guests["web1"]
    guest.writers = (scripted.writer("two", grade=Grade.STANDS_STILL),)
    assert world.take(vm).consistency is Consistency.APPLICATION
    assert guest.asked and not guest.asked.nil_redo


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


def test_a_vm_for_which_checkpoints_are_disabled_gets_one_only_by_name(world):
    """Broken: whoever disabled them, as a service that must never stand still, would have it held all the same."""
    vm = world.vm()
    world.catalog.settings.put(vm.key, Settings(type=Type.DISABLED))
    with pytest.raises(RefusedError, match="the settings of web1 disable checkpoints"):
        checkpoint(world.context, "web1", name="a")
    world.nothing_left(vm)
    assert checkpoint(world.context, "web1", name="a", type=Type.PRODUCTION, window_s=WINDOW_S).name == "a"


def test_a_checkpoint_is_not_taken_on_a_chain_that_somebody_changed(world):
    """Broken: its parent in the tree would be a checkpoint whose content it does not have."""
    vm = world.vm()
    world.take(vm)
    world.host.storage.files[vm.sources()["vda"]].below = None
    with pytest.raises(RefusedError, match="somebody changed the backing chain of disk vda"):
        world.take(vm, "b")
    assert world.names(vm) == ["a"]


def test_a_vm_with_saved_memory_is_left_alone(world):
    """Broken: its memory would be resumed on disks that are not those it was saved with, and ruin them."""
    vm = world.vm(running=False)
    vm.clean = vm.managed_save = True
    with pytest.raises(RefusedError, match="saved memory"):
        world.take(vm)
    assert vm.sources() == {"vda": "/i/web1.qcow2"}
    vm.managed_save = False
    world.take(vm)
    vm.managed_save = True
    for refused in (lambda: world.restore(vm), lambda: world.take(vm, "b")):
        with pytest.raises(RefusedError, match="saved memory"):
            refused()
    assert world.names(vm) == ["a"]


def test_a_checkpoint_says_which_disks_it_leaves_out(world):
    """Broken: a restore would throw away the disk that was to stay as it is."""
    vm = world.vm(targets=("vda", "vdb"))
    node = checkpoint(world.context, "web1", name="a", exclude=("vdb",), window_s=WINDOW_S)
    assert ([disk.target for disk in node.disks], node.excluded) == (["vda"], ("vdb",))
    vm.write("vda", 1, "later")
    vm.write("vdb", 1, "later")
    world.restore(vm)
    assert (world.content(vm), world.content(vm, "vdb")) == ({0: "at first"}, {0: "at first", 1: "later"})


def test_a_second_operation_on_the_vm_is_refused_while_the_first_runs(world):
    """Broken: two operations would switch, merge and remove the images of one VM at once."""
    vm = world.vm()
    world.take(vm)
    refused: list[str] = []

    def interfere(step: str) -> None:
        if step == "prepare":
            with pytest.raises(BusyError, match="quiesce checkpoint web1"):
                delete(world.context, [CheckpointReference("web1", "a")])
            refused.append(step)

    world.guests["web1"].on_step = interfere
    world.take(vm, "b")
    assert refused == ["prepare"]
    assert world.names(vm) == ["a", "b"]


def test_a_standard_checkpoint_goes_back_running_with_its_memory(world):
    """Broken: the VM would boot on disks that its memory was in the middle of writing."""
    vm = world.vm()
    node = checkpoint(world.context, "web1", name="a", type=Type.STANDARD)
    memory = node.file(Role.MEMORY)
    assert memory is not None
    assert (node.kind, node.consistency) == (Kind.STANDARD, Consistency.CRASH)
    vm.write("vda", 1, "later")
    assert world.restore(vm).started
    assert (vm.active(), vm.resumed_from) == (True, memory.path)
    assert world.content(vm) == {0: "at first"}


@pytest.mark.parametrize("why", ["", "Guest agent is not responding"])
def test_the_clock_is_set_after_a_standard_restore_or_a_warning_says_that_it_is_not(why, world):
    """Broken: a database would give times to its rows that are an hour old, and nobody know."""
    vm = world.vm()
    checkpoint(world.context, "web1", name="a", type=Type.STANDARD)
    vm.no_clock = why
    before = time.time()
    world.restore(vm)
    told = [text for text in world.warnings() if "the clock of the guest" in text]
    assert bool(told) == bool(why)
    assert all(why in text for text in told)
    assert (vm.clock == 0) if why else (before <= vm.clock <= time.time())


def test_a_standard_checkpoint_has_all_disks(world):
    """Broken: the guest's memory would go back without the disk, and write to it what it remembers."""
    vm = world.vm(targets=("vda", "vdb"))
    with pytest.raises(RefusedError, match="cannot leave out disk vdb"):
        checkpoint(world.context, "web1", name="a", type=Type.STANDARD, exclude=("vdb",))
    world.nothing_left(vm)


def test_a_standard_checkpoint_that_fails_ends_the_saving(world):
    """Broken: libvirt would go on, and switch the VM to an overlay that was removed meanwhile."""
    vm = world.vm()

    def fail() -> None:
        raise HypervisorError("the connection was lost")

    vm.on_save = fail
    recovered: list[bool] = []
    end_saving = vm.end_saving
    vm.end_saving = lambda: (recovered.append(vm.saving), end_saving())  # type: ignore[method-assign, assignment]
    with pytest.raises(HypervisorError):
        checkpoint(world.context, "web1", name="a", type=Type.STANDARD)
    assert recovered == [True, False]  # at once, and not only when it is undone
    world.nothing_left(vm)


def test_memory_of_another_name_is_refused_before_the_vm_is_stopped(world):
    """Broken: libvirt would refuse it when the VM is off and its disks are another's."""
    vm = world.vm()
    node = checkpoint(world.context, "web1", name="a", type=Type.STANDARD)
    memory = node.file(Role.MEMORY)
    assert memory is not None
    world.host.storage.files[memory.path].content = vm.xml.replace("web1", "web2").encode()
    with pytest.raises(RefusedError, match="the memory of 'a' was saved when the VM was named web2"):
        world.restore(vm)
    assert vm.active()
