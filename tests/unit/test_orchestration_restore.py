"""A restore from end to end on a host in memory: what fails in its middle leaves one state or the other. Each test fails if one
check of the host side is left out."""

from __future__ import annotations

from typing import Any

import pytest

from quiesce.catalog import journal
from quiesce.catalog.steps import PutBack
from quiesce.disks import images
from quiesce.model.errors import BusyError, HypervisorError, NotFoundError, RefusedError
from quiesce.model.names import CheckpointReference
from quiesce.model.standing import Untouched
from quiesce.operations.restore import restore
from quiesce.recovery import recover_all


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


def _killed_once_defined(world, vm, node) -> PutBack:
    """Leaves what a restore leaves that is killed after it has defined the VM and before it has recorded that."""
    made = world.host.storage.make("/i/made", "/i/web1.qcow2")
    world.catalog.images.note(vm.key, made)
    step = PutBack(node.id, {"vda": made}, vm.definition(), Untouched({made: world.host.storage.image(made).written}))
    journal.Journal(world.catalog, vm.key, "restore").intend(step)
    vm.xml = vm.xml.replace(vm.sources()["vda"], made)
    return step


def test_a_restore_that_was_defined_is_completed_by_whoever_comes_next(world):
    """Broken: the state it left would be lost with the process that was to record it."""
    vm = world.vm()
    node = world.take(vm)
    vm.power_off()
    step = _killed_once_defined(world, vm, node)
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


def test_a_checkpoint_whose_files_are_gone_is_not_restored(world):
    """Broken: the VM would be stopped, and not start again."""
    vm = world.vm()
    node = world.take(vm)
    world.take(vm, "b")
    vm.power_off()
    vm.start()
    del world.host.storage.files[node.disks[0].path]
    with pytest.raises(NotFoundError, match=r"'b' cannot be restored: /i/web1\.qcow2 is gone"):
        world.restore(vm, "b", discard_current=True)
    assert vm.active()


def test_a_vm_that_is_started_during_its_restore_stays_where_it_was(world):
    """Broken: it would be recorded at the checkpoint while it writes the state that was to be kept as it is."""
    vm = world.vm()
    world.take(vm)
    vm.write("vda", 1, "later")
    left, redefine = dict(vm.sources()), vm.redefine

    def start_first(xml: str) -> None:
        if not vm.active():
            vm.start()
        redefine(xml)

    vm.redefine = start_first  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="somebody started web1 during the restore"):
        world.restore(vm)
    assert (vm.sources(), vm.heads(next_start=True)) == (left, left)
    assert world.names(vm) == ["a"]
    assert world.tree(vm).head_parent == world.tree(vm).find("a").id
    assert world.content(vm) == {0: "at first", 1: "later"}
    assert journal.interrupted(world.catalog, vm.key) == []


def test_a_restore_that_discards_is_completed_by_whoever_comes_next(world):
    """Broken: the VM would be defined on images that are removed as nobody's."""
    vm = world.vm()
    node = world.take(vm)
    vm.power_off()
    (made,) = _killed_once_defined(world, vm, node).sources.values()
    recover_all(world.context, vm)
    assert made in world.host.storage.files
    assert world.tree(vm).head_parent == node.id
    vm.start()
    assert world.content(vm) == {0: "at first"}


def test_a_restored_vm_hears_that_it_went_back(world):
    """Broken: a guest that lives by its generation ID, as a domain controller, would go on as if nothing had happened."""
    vm = world.vm()
    world.take(vm)
    first = world.restore(vm).generation
    assert f"<genid>{first}</genid>" in vm.xml
    assert world.restore(vm).generation != first


def test_a_restore_leaves_the_state_of_a_vm_that_was_refused(world):
    """Broken: a user who is told no would find the VM stopped."""
    vm = world.vm()
    world.take(vm)
    vm.job = "a job (backup, migration, dump or save)"
    with pytest.raises(BusyError):
        restore(world.context, CheckpointReference("web1", "a"))
    assert vm.active()
    assert world.names(vm) == ["a"]
