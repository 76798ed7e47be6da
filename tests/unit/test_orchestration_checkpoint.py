"""A checkpoint of a VM from end to end on a host in memory: when it has its label, and that nothing is left of one that failed.
Each test fails if one check of the host side is left out."""

from __future__ import annotations

import pytest

from quiesce.guests import scripted
from quiesce.model.errors import ConsistencyError, HypervisorError
from quiesce.model.grades import Consistency, Grade, Level


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
