"""A deletion on a host in memory: the label of the disks while it merges, and parts of a group's checkpoint. Each test fails if
one check of the host side is left out."""

from __future__ import annotations

import pytest

from quiesce.model.errors import BusyError, RefusedError
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.model.standing import Untouched
from quiesce.operations.delete import delete
from quiesce.operations.group_checkpoint import group_checkpoint
from tests.unit.world import WINDOW_S


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


def test_only_what_is_named_is_deleted(world):
    """Broken: checkpoints that nobody named would be gone."""
    vm = world.vm()
    for name in "abc":
        world.take(vm, name)
    assert [node.name for node in delete(world.context, [CheckpointReference("web1", "a")], dry_run=True).checkpoints] == ["a"]
    assert world.names(vm) == ["a", "b", "c"]
    delete(world.context, [CheckpointReference("web1", "a")])
    assert world.names(vm) == ["b", "c"]
    assert [node.name for node in delete(world.context, [CheckpointReference("web1", "b")], subtree=True).checkpoints] == [
        "b",
        "c",
    ]
    assert world.names(vm) == []
    assert world.content(vm) == {0: "at first"}


@pytest.mark.parametrize(("what", "value"), [("snapshots", 1), ("job", "a block job on disk vda")])
def test_nothing_is_merged_while_libvirt_has_something_of_its_own_there(what, value, world):
    """Broken: snapshots of libvirt's own would lose the images they are based on; a backup would read what is merged."""
    vm = world.vm()
    world.take(vm)
    files = set(world.host.storage.files)
    setattr(vm, what, value)
    with pytest.raises((RefusedError, BusyError)):
        delete(world.context, [CheckpointReference("web1", "a")])
    assert world.names(vm) == ["a"]
    assert set(world.host.storage.files) == files


def test_the_disks_of_saved_memory_are_not_merged(world):
    """Broken: the memory names the image that was merged away, and the VM would not start any more."""
    vm = world.vm()
    world.take(vm)
    vm.power_off()
    vm.managed_save = True
    with pytest.raises(RefusedError, match="saved memory"):
        delete(world.context, [CheckpointReference("web1", "a")])
    assert vm.sources()["vda"] in world.host.storage.files
    assert vm.sources()["vda"] != "/i/web1.qcow2"


@pytest.mark.parametrize("clean", [False, True])
def test_a_merge_makes_no_better_of_what_a_guest_left(clean, world):
    """Broken: disks of a guest that lost its power would be called application-consistent once something was deleted."""
    vm = world.vm(running=False)
    vm.clean = True
    world.take(vm)
    world.take(vm, "b")
    vm.start()
    vm.write("vda", 1, "later")
    vm.power_off(clean=clean)
    delete(world.context, [CheckpointReference("web1", "a")])
    expected = Consistency.APPLICATION if clean else Consistency.CRASH
    assert world.take(vm, "c", Consistency.CRASH).consistency is expected
