"""The start of a VM on a host in memory: its automatic checkpoint, and what a killed operation left."""

from __future__ import annotations

import pytest

from quiesce.catalog import journal
from quiesce.catalog.steps import PutBack
from quiesce.model.errors import RefusedError
from quiesce.model.grades import Consistency
from quiesce.model.settings import Settings
from quiesce.model.standing import Untouched
from quiesce.model.tree import Kind
from quiesce.operations.start import start


def test_a_vm_whose_automatic_checkpoint_fails_stays_off(world):
    """Broken: it would run without the way back that was asked for."""
    vm = world.vm(running=False)
    vm.clean = True
    world.catalog.settings.put(vm.key, Settings(automatic=True))
    vm.snapshots = 1
    with pytest.raises(RefusedError):
        start(world.context, "web1")
    assert not vm.active()
    vm.snapshots = 0
    taken = start(world.context, "web1").checkpoint
    assert taken is not None
    assert (vm.active(), taken.kind, taken.consistency) == (True, Kind.AUTOMATIC, Consistency.APPLICATION)


def test_a_vm_that_had_no_power_is_started_without_its_automatic_checkpoint(world):
    """Broken: after a power failure of the host none of these VMs would come up."""
    vm = world.vm(running=False)
    world.catalog.settings.put(vm.key, Settings(automatic=True))
    assert start(world.context, "web1").checkpoint is None
    assert vm.active()
    assert any("no automatic checkpoint" in text for text in world.warnings())


def test_a_vm_is_not_started_on_what_a_killed_operation_left(world):
    """Broken: it would write to an overlay that the next operation removes."""
    vm = world.vm()
    node = world.take(vm)
    vm.power_off()
    before, overlay = vm.definition(), vm.sources()["vda"]
    made = world.host.storage.make("/i/made", "/i/web1.qcow2")
    world.catalog.images.note(vm.key, made)
    step = PutBack(node.id, {"vda": made}, before, Untouched({made: world.host.storage.image(made).written}))
    journal.Journal(world.catalog, vm.key, "restore").intend(step)
    vm.xml = vm.xml.replace(overlay, made)
    start(world.context, "web1")
    assert journal.interrupted(world.catalog, vm.key) == []
    assert world.catalog.checkpoints.untouched(vm.key) == step.untouched
