"""quiesce itself writes to the images of checkpoints when it merges: that alarms nobody, and hides nothing that another program
changed."""

from __future__ import annotations

from typing import Any

import pytest

from quiesce.disks.survey import survey
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.operations.delete import delete
from quiesce.recovery import recover_all
from tests.unit.changed_images import IMAGE, change, found, labels, vm_with, writing_before

APPLICATION, CRASH = Consistency.APPLICATION, Consistency.CRASH


class KilledError(BaseException):
    """The process is gone."""


def test_a_merge_does_not_hide_what_was_changed_before(world):
    """Broken: a deletion would record the changed bytes as those that the label was given to."""
    vm = vm_with(world, "a", "b", "c")
    change(world)
    delete(world.context, [CheckpointReference("web1", "a")])
    assert {node.name: node.consistency for node in world.tree(vm).checkpoints} == {"b": CRASH, "c": CRASH}
    assert labels(world) == {"b": CRASH, "c": CRASH}
    assert any(IMAGE in text for text in world.warnings())


def test_a_deletion_ends_although_somebody_goes_on_writing(world, monkeypatch):
    """Broken: a deletion would look at the image again and again, and never merge."""
    vm = vm_with(world, "a", "b", "c")
    monkeypatch.setattr("quiesce.disks.merges.survey", writing_before(world, survey))
    delete(world.context, [CheckpointReference("web1", "a")])
    assert {node.name: node.consistency for node in world.tree(vm).checkpoints} == {"b": CRASH, "c": CRASH}


def test_a_merge_of_a_vm_that_is_off_does_not_hide_what_was_changed_before(world):
    """Broken: the disks would keep the label of the restored checkpoint over a merge, although they are not what it was."""
    vm = vm_with(world, "a", "b", "c")
    world.restore(vm, "c", discard_current=True)
    change(world, world.tree(vm).find("c").disks[0].path)
    delete(world.context, [CheckpointReference("web1", "a")])
    left = world.catalog.checkpoints.untouched(vm.key)
    assert left is not None
    assert left.worth is CRASH


def test_nobody_is_alarmed_by_a_merge_of_quiesce_itself(world, monkeypatch):
    """Broken: whoever looks while a merge runs, or after it, would be told that his checkpoints were changed."""
    vm = vm_with(world, "a", "b", "c")
    seen = []
    commit = world.host.storage.commit

    def looking(*arguments: Any, **named: Any) -> None:
        commit(*arguments, **named)
        seen.append(labels(world))

    monkeypatch.setattr(world.host.storage, "commit", looking)
    delete(world.context, [CheckpointReference("web1", "a")])
    assert seen == [{"b": APPLICATION, "c": APPLICATION}]
    assert labels(world) == {"b": APPLICATION, "c": APPLICATION}
    assert found(world) == ()
    assert vm.active()


def test_nobody_is_alarmed_by_a_merge_that_was_killed(world, monkeypatch):
    """Broken: after the recovery of a merge that wrote a part, the checkpoints that read it would be called changed."""
    vm = vm_with(world, "a", "b", "c")
    vm.job_completes = False

    def part(_top: str, base: str, **_: Any) -> None:
        change(world, base)
        raise KilledError

    def gone(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(world.host.storage, "commit", part)
        patch.setattr("quiesce.recovery._recover_one", gone)
        delete(world.context, [CheckpointReference("web1", "a")])
    assert labels(world) == {"b": APPLICATION, "c": APPLICATION}
    recover_all(world.context, vm)
    assert labels(world) == {"b": APPLICATION, "c": APPLICATION}
    assert [text for text in found(world) if "another program" in text] == []
    change(world)
    assert labels(world) == {"b": CRASH, "c": CRASH}


def test_an_image_that_the_vm_writes_again_has_no_fingerprint(world):
    """Broken: after all checkpoints are deleted, the next one would be called changed by its own guest."""
    vm = vm_with(world, "a")
    delete(world.context, [CheckpointReference("web1", "a")])
    assert vm.sources() == {"vda": IMAGE}
    assert world.catalog.fingerprints.of(vm.key) == {}
    vm.write("vda", 2, "more")
    assert world.take(vm, "b").consistency is APPLICATION
    assert labels(world) == {"b": APPLICATION}


def test_an_image_is_read_when_it_is_no_longer_written(world):
    """Broken: what QEMU writes into an image while the switch ends would be taken for a change."""
    vm = world.vm()
    switch = vm.switch

    def late(overlays: Any) -> None:
        switch(overlays)
        world.host.storage.touch(IMAGE)

    vm.switch = late  # type: ignore[method-assign]
    world.take(vm)
    assert labels(world) == {"a": APPLICATION}
