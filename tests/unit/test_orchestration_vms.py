"""operations/vms.py, and VMs that are not what the catalog knows."""

from __future__ import annotations

import pytest

from quiesce.hypervisor.vm import PowerState
from quiesce.model.errors import HypervisorError, NotFoundError, RefusedError
from quiesce.operations.doctor import doctor
from quiesce.operations.vms import vms
from tests.unit.fake_host import FakeVm


def test_a_vm_whose_state_cannot_be_read_is_listed_with_the_others(world, monkeypatch):
    """Broken: while one VM of many is stopped, the list of all fails."""
    first, second, third = (world.vm(name) for name in ("web1", "db1", "db2"))
    world.take(first)

    def raising(error: Exception):
        def facts() -> None:
            raise error

        return facts

    monkeypatch.setattr(first, "glance", raising(HypervisorError("libvirt said no")))
    monkeypatch.setattr(second, "glance", raising(NotFoundError("it is gone")))
    found = {vm.name: vm for vm in vms(world.context)}
    assert found.keys() == {"web1", "db2"}
    assert (found["web1"].state, found["web1"].checkpoints) == (PowerState.OTHER, 1)
    assert found["web1"].problem == "libvirt said no"
    assert (found["db2"].state, found["db2"].problem) == (PowerState.RUNNING, None)
    assert third.name == "db2"


@pytest.mark.parametrize("name", ["web1", "renamed"])
def test_a_vm_defined_anew_is_recognised_by_its_disks(name, world):
    """Broken: the old checkpoints could not be reached any more, and a checkpoint of the new VM would cut their chains."""
    old = world.vm(running=False)
    old.clean = True
    world.take(old)
    world.host.vms.remove(old)
    new = FakeVm(world.host, old.sources(), name=name, uuid="uuid-new")
    new.clean = True
    files = set(world.host.storage.files)
    with pytest.raises(RefusedError, match="has the checkpoints web1@a") as refused:
        world.take(new, "b")
    assert set(world.host.storage.files) == files
    assert f"quiesce doctor {name} --repair" in str(refused.value.hint)
    doctor(world.context, name, repair=True)
    assert world.names(new) == ["a"]
    world.take(new, "b")
    assert world.names(new) == ["a", "b"]


def test_a_clone_on_a_checkpoint_is_a_vm_of_its_own(world):
    """Broken: linked clones of a checkpoint could not be checkpointed."""
    vm = world.vm()
    node = world.take(vm)
    world.host.storage.make("/i/clone.qcow2", node.disks[0].path)
    clone = FakeVm(world.host, {"vda": "/i/clone.qcow2"}, name="clone", uuid="uuid-clone")
    clone.clean = True
    world.take(clone)
    assert world.names(clone) == ["a"]
