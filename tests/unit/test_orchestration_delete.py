"""A deletion on a host in memory: the label of the disks while it merges, and parts of a group's checkpoint. Each test fails if
one check of the host side is left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import sqlalchemy as sa

from quiesce.catalog.database import Database
from quiesce.model.errors import BusyError, HypervisorError, RefusedError
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.model.standing import Untouched
from quiesce.operations import group
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
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
    assert world.names(vm) == ["a"]
    assert vm.sources()["vda"] in world.host.storage.files
    assert vm.sources()["vda"] != "/i/web1.qcow2"


def test_a_merge_that_waited_waits_on_for_saved_memory(world):
    """Broken: the deletion of a branch would fail although the branch is gone, because of an earlier deletion."""
    vm = world.vm()
    world.take(vm)
    world.take(vm, "b")
    world.restore(vm, "a", discard_current=True)
    assert delete(world.context, [CheckpointReference("web1", "a")]).waiting == ()
    vm.managed_save = True
    (waiting,) = delete(world.context, [CheckpointReference("web1", "b")]).waiting
    assert (waiting.name, "saved memory" in waiting.reason) == ("a", True)
    assert vm.sources()["vda"] != "/i/web1.qcow2"
    vm.managed_save = False
    merged = doctor(world.context, "web1", repair=True)
    assert "were merged" in str(merged)
    assert vm.sources()["vda"] == "/i/web1.qcow2"


@pytest.mark.parametrize("place", ["unreadable", "empty"])
def test_nothing_is_deleted_while_the_images_cannot_be_looked_at(place, world):
    """Broken: with a directory that is not mounted the command would fail, and the checkpoint be gone all the same."""
    vm = world.vm()
    world.take(vm)
    if place == "unreadable":
        world.host.storage.unreadable["/i"] = "not mounted"
    else:
        world.host.storage.files.clear()
    with pytest.raises(HypervisorError):
        delete(world.context, [CheckpointReference("web1", "a")])
    assert world.names(vm) == ["a"]


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


@pytest.mark.timeout(180)  # some hundred runs
def test_a_group_checkpoint_goes_as_a_whole_wherever_ctrl_c_comes(world, monkeypatch):
    """Broken: some parts would be gone and others there, the group's checkpoint could not be restored, and nothing would say
    so."""
    vms = [world.vm(name, running=False) for name in ("web1", "db1")]
    for vm in vms:
        vm.clean = True
    world.group("web1", "db1")
    transaction, left, outcomes = Database.transaction, 0, set()

    @contextmanager
    def interrupted(self: Database) -> Iterator[sa.Connection]:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        with transaction(self) as connection:
            yield connection

    for step in range(1, 200, 2):
        if not world.names(vms[0]):
            group_checkpoint(world.context, "shop", name="now", required=Consistency.CRASH, window_s=WINDOW_S)
        left = step
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(Database, "transaction", interrupted)
            group.delete_checkpoint(world.context, "shop@now")
            break
        names = [world.names(vm) for vm in vms]
        assert names in ([[]] * 2, [["now"]] * 2), f"step {step}"
        outcomes.add(len(names[0]))
        doctor(world.context, None, repair=True)
        assert [item for item in doctor(world.context, None, repair=False) if item.found] == []
    assert step > 15
    assert outcomes == {0, 1}
    assert [world.tree(vm).nodes for vm in vms] == [()] * 2


def test_one_vm_that_cannot_delete_keeps_all_parts(world):
    """Broken: the parts of the VMs that come before it would be gone."""
    vms = [world.vm(name) for name in ("web1", "db1")]
    world.group("web1", "db1")
    group_checkpoint(world.context, "shop", name="now", window_s=WINDOW_S)
    vms[1].job = "a backup"
    with pytest.raises(BusyError):
        group.delete_checkpoint(world.context, "shop@now")
    assert [world.names(vm) for vm in vms] == [["now"]] * 2
