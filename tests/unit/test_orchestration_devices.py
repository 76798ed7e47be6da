"""Operations on VMs whose disks are block devices or raw files, and where their overlays go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quiesce.catalog import manifest
from quiesce.hypervisor import domain_xml
from quiesce.model.errors import RefusedError, UsageError
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.settings import settings
from quiesce.storage.memory import CAPACITY
from tests.unit.fake_host import FakeVm
from tests.unit.world import World

DEVICE = "/dev/vg/web1"


@pytest.fixture(params=[True, False], ids=["running", "off"])
def vm(world: World, request: pytest.FixtureRequest) -> FakeVm:
    """It has one disk, a block device."""
    storage = world.host.storage
    storage.make(DEVICE, blocks={0: "at first"}, format="raw")
    vm = world.vm(running=False)
    del storage.files["/i/web1.qcow2"]
    vm.xml = domain_xml.with_sources(vm.xml, {"vda": domain_xml.Source(DEVICE, "raw", device=True)})
    vm.clean = True
    if request.param:
        vm.start()
    return vm


def take(world: World, vm: FakeVm, name: str, overlays: str | None = "/over") -> None:
    checkpoint(world.context, vm.name, name=name, required=Consistency.CRASH, overlays=overlays)


def healthy(world: World, vm: FakeVm) -> None:
    (found,) = doctor(world.context, vm.name, repair=False)
    assert found.found == ()


def test_a_device_goes_under_overlays_and_is_written_again(world, vm):
    """Broken: the VM would lose what it wrote, or its device would be removed."""
    take(world, vm, "a")
    (node,) = world.tree(vm).checkpoints
    assert (node.disks[0].path, node.disks[0].format, node.disks[0].size, node.place) == (DEVICE, "raw", CAPACITY, "/over")
    assert f"/over/{manifest.name(node.id)}" in world.host.storage.files
    if not vm.active():
        vm.start()
    vm.write("vda", 1, "later")
    take(world, vm, "b", overlays=None)  # beside the overlay of the first
    assert world.content(vm) == {0: "at first", 1: "later"}
    world.restore(vm, "a", discard_current=True)
    assert world.content(vm) == {0: "at first"}
    healthy(world, vm)
    world.restore(vm, "b", discard_current=True)
    delete(world.context, [CheckpointReference(vm.name, "*")])
    assert world.content(vm) == {0: "at first", 1: "later"}
    (disk,) = domain_xml.disks(vm.xml)
    assert (disk.source_type, disk.path, disk.format) == ("block", DEVICE, "raw")
    assert set(world.host.storage.files) == {DEVICE}
    healthy(world, vm)


def test_a_checkpoint_that_moves_to_the_device_has_the_device_s_format(world, vm):
    """Broken: the second checkpoint would be read as qcow2, so a restore would fail, or read what a guest wrote as a header."""
    take(world, vm, "a")
    take(world, vm, "b")
    delete(world.context, [CheckpointReference(vm.name, "a")])
    (node,) = world.tree(vm).checkpoints
    assert (node.name, node.disks[0].path, node.disks[0].format) == ("b", DEVICE, "raw")
    assert f"/over/{manifest.name(node.id)}" in world.host.storage.files
    healthy(world, vm)


def test_a_checkpoint_that_fails_gives_the_device_back(world, vm, monkeypatch):
    """Broken: the VM would stay on an overlay that belongs to no checkpoint."""

    def fail(*_):
        raise RefusedError("no")

    monkeypatch.setattr("quiesce.operations.checkpoint.record", fail)
    with pytest.raises(RefusedError, match="no"):
        take(world, vm, "a")
    assert vm.sources() == vm.heads(next_start=True) == {"vda": DEVICE}
    (disk,) = domain_xml.disks(vm.xml)
    assert (disk.source_type, disk.format) == ("block", "raw")


def test_a_device_alone_needs_a_directory(world, vm):
    """Broken: overlays would go among the devices."""
    before = dict(world.host.storage.files), vm.xml
    with pytest.raises(RefusedError, match="disk vda of web1 is a block device") as refused:
        take(world, vm, "a", overlays=None)
    assert "quiesce settings web1 --overlays DIRECTORY" in str(refused.value.hint)
    assert (dict(world.host.storage.files), vm.xml) == before
    settings(world.context, vm.name, overlays="/over//there")
    take(world, vm, "a", overlays=None)
    assert [node.place for node in world.tree(vm).checkpoints] == ["/over/there"]
    assert settings(world.context, vm.name, overlays="").overlays is None


def test_the_directory_of_another_disk_serves(world):
    """Broken: an administrator would have to name a directory that is plain."""
    vm = world.vm(targets=("vda", "vdb"))
    world.host.storage.make(DEVICE, format="raw")
    vm.power_off()
    vm.xml = domain_xml.with_sources(vm.xml, {"vda": domain_xml.Source(DEVICE, "raw", device=True)})
    take(world, vm, "a", overlays=None)
    assert {path.rpartition("/")[0] for path in vm.sources().values()} == {"/i"}


def test_a_device_that_is_gone_is_missed_before_the_vm_is_powered_off(world, vm, monkeypatch):
    """Broken: the VM would be off, on an overlay without a backing file."""
    take(world, vm, "a")
    before = vm.xml, vm.active()
    monkeypatch.setattr(world.host, "local", True)
    assert not Path(DEVICE).exists()
    with pytest.raises(RefusedError, match=f"{DEVICE}, for its disk vda"):
        world.restore(vm)
    assert (vm.xml, vm.active()) == before


@pytest.mark.parametrize(("directory", "error"), [("/locked", RefusedError), ("over", UsageError), ("/a/../b", UsageError)])
def test_a_directory_that_cannot_be_used_is_refused_at_once(world, vm, directory, error):
    """Broken: the setting would be kept, and every later checkpoint fail."""
    world.host.storage.unreadable["/locked"] = "it is not mounted"
    for call in (settings, lambda *_, overlays: take(world, vm, "a", overlays)):
        with pytest.raises(error):
            call(world.context, vm.name, overlays=directory)
    assert settings(world.context, vm.name).overlays is None
    assert world.tree(vm).nodes == ()


def test_what_was_written_on_a_device_is_not_vouched_for(world, vm):
    """Broken: nothing tells whether somebody wrote the device since; a label would be inherited all the same."""
    if vm.active():
        vm.power_off()
    take(world, vm, "a")
    world.restore(vm, "a", discard_current=True)
    delete(world.context, [CheckpointReference(vm.name, "a")])
    take(world, vm, "b")
    assert world.tree(vm).checkpoints[0].consistency is Consistency.CRASH


def test_an_unsigned_manifest_names_no_device_that_is_not_the_vm_s(world, vm, tmp_path):
    """Broken: whoever writes beside the images would give a VM the device of another one."""
    from quiesce.operations.rebuild import rebuild

    take(world, vm, "a")
    (node,) = world.tree(vm).checkpoints
    forged = replace(node, id="f" * 32, name="forged", disks=(replace(node.disks[0], path="/dev/vg/other"),))
    other = world.without_catalog(tmp_path / "other")
    content = manifest.dump(manifest.Manifest(forged, vm.xml), other.catalog.seal).replace(b'"seal": "', b'"seal": "0')
    world.host.storage.write(f"/over/{manifest.name(forged.id)}", content)
    rebuild(other.context, ["/over"], accept_unsigned=True)
    assert [found.name for found in other.tree(vm).checkpoints] == ["a"]
    assert any("/dev/vg/other" in text for text in other.warnings())
