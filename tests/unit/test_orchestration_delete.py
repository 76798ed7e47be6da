"""A deletion on a host in memory: the label of the disks while it merges, and parts of a group's checkpoint. Each test fails if
one check of the host side is left out."""

from __future__ import annotations

import pytest

from quiesce.model.errors import RefusedError
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
