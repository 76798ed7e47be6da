"""operations/vms.py, and VMs that are not what the catalog knows."""

from __future__ import annotations

from types import SimpleNamespace

import libvirt
import pytest

from quiesce.hypervisor.glances import glances
from quiesce.hypervisor.vm import PowerState
from quiesce.model.errors import RefusedError
from quiesce.model.names import TRIAL_PREFIX
from quiesce.operations.doctor import doctor
from quiesce.operations.vms import vms
from tests.unit.fake_host import FakeVm, definition
from tests.unit.fake_libvirt import FakeDomain


class SeenDomain(FakeDomain):
    """A libvirt.virDomain whose definition cannot be had, with this error; or can, if there is none."""

    def __init__(self, name: str, error: int | None) -> None:
        super().__init__(name, f"uuid-{name}")
        object.__setattr__(self, "error", error)

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's own name
        if self.error is not None:
            failure = libvirt.libvirtError("libvirt said no")
            failure.err = (self.error, 10, "libvirt said no", 2, "", None, None, 0, 0)
            raise failure
        return definition({})

    def isActive(self) -> int:  # noqa: N802 - libvirt's own name
        if self.error is not None:
            self.XMLDesc(0)
        return 0


def test_a_vm_whose_state_cannot_be_read_is_listed_with_the_others(world, monkeypatch):
    """Broken: while one VM of many is stopped, the list of all fails."""
    states = {"web1": libvirt.VIR_ERR_INTERNAL_ERROR, "db1": libvirt.VIR_ERR_NO_DOMAIN, "db3": None, "db2": None}
    answers = [(SeenDomain(name, error), {"state.state": libvirt.VIR_DOMAIN_RUNNING}) for name, error in states.items()]
    answers.append((SeenDomain("db4", None), {"state.state": libvirt.VIR_DOMAIN_CRASHED}))
    answers.append((SeenDomain("gone", libvirt.VIR_ERR_NO_DOMAIN), {"state.state": libvirt.VIR_DOMAIN_CRASHED}))
    answers.append((SeenDomain(f"{TRIAL_PREFIX}1", None), {"state.state": libvirt.VIR_DOMAIN_RUNNING}))
    host = SimpleNamespace(id=world.host.id, connection=SimpleNamespace(getAllDomainStats=lambda _: answers))
    monkeypatch.setattr(type(world.context), "glances", lambda _self, _host: glances(host))
    found = vms(world.context)
    assert [vm.name for vm in found] == ["db2", "db3", "db4", "web1"]
    assert [vm.state for vm in found] == [PowerState.RUNNING, PowerState.RUNNING, PowerState.OFF, PowerState.OTHER]
    assert [vm.agent for vm in found] == ["none", "none", "none", "unknown"]
    assert found[0].problem is None
    assert found[-1].problem == "reading the state of web1: libvirt said no"


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
