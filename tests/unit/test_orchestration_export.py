"""Exports and imports from end to end on a host in memory. Each test fails if one check of the host side is left out."""

from __future__ import annotations

import pytest

from quiesce.catalog import exported, journal
from quiesce.catalog.steps import CopyIn, WriteExport
from quiesce.model.errors import HypervisorError, NameTakenError, QuiesceError, RefusedError
from quiesce.model.names import CheckpointReference
from quiesce.operations.doctor import doctor
from quiesce.operations.export import export
from quiesce.operations.import_ import import_vm
from quiesce.recovery import recover_all
from tests.unit.fake_host import FakeVm
from tests.unit.world import World


@pytest.fixture
def vm(world: World) -> FakeVm:
    """Its checkpoint `a` says "at first", the VM itself also "later"."""
    vm = world.vm()
    world.take(vm)
    vm.write("vda", 1, "later")
    return vm


def files(world: World, directory: str) -> list[str]:
    return sorted(path for path in world.host.storage.files if path.startswith(f"{directory}/"))


def written(world: World) -> None:
    export(world.context, CheckpointReference("web1", "a"), "/e")


# -- export


def test_what_is_exported_comes_back_as_a_vm_of_its_own(world, vm):
    """Broken: the copy would lack data, or be taken for the VM it was made of."""
    written(world)
    imported = import_vm(world.context, "/e", to="/t", name="web2", start=True)
    other = world.host.vms[-1]
    assert (other.name, other.uuid, other.active()) == ("web2", imported.uuid, True)
    assert other.uuid != vm.uuid
    assert world.content(other) == {0: "at first"}
    assert world.content(vm) == {0: "at first", 1: "later"}
    other.write("vda", 0, "its own")
    assert world.content(vm) == {0: "at first", 1: "later"}


def test_a_directory_with_anything_in_it_is_left_alone(world, vm):
    """Broken: two exports would be mixed up in one directory, and a failure remove files of the first."""
    world.host.storage.make("/e/vdb.qcow2", blocks={0: "somebody's"})
    with pytest.raises(RefusedError, match="/e is not empty"):
        written(world)
    assert files(world, "/e") == ["/e/vdb.qcow2"]


def test_an_export_that_fails_leaves_nothing(world, vm, monkeypatch):
    """Broken: half an export would fill the storage, and the next one be refused for it."""

    def fail(*_: object) -> str:
        raise HypervisorError("libvirt is gone")

    with monkeypatch.context() as patch, pytest.raises(HypervisorError):
        patch.setattr(world.host.storage, "sha256", fail)
        written(world)
    assert files(world, "/e") == []
    assert journal.interrupted(world.catalog, vm.key) == []
    written(world)


def test_an_export_that_is_whole_stays_though_its_process_was_killed(world, vm):
    """Broken: a backup that its user holds to be complete would be removed by the next operation."""
    written(world)
    there = files(world, "/e")
    step = WriteExport("/e", ("vda.qcow2", exported.DOMAIN, exported.NAME))
    journal.Journal(world.catalog, vm.key, "export").intend(step)
    recover_all(world.context, vm)
    assert files(world, "/e") == there
    assert journal.interrupted(world.catalog, vm.key) == []


# -- import


def test_a_damaged_export_is_not_imported(world, vm):
    """Broken: a backup that rotted would be found out by the application that starts on it."""
    written(world)
    world.host.storage.files["/e/domain.xml"].content += b"<!-- -->"
    with pytest.raises(QuiesceError, match=r"/e/domain\.xml is damaged"):
        import_vm(world.context, "/e", to="/t", name="web2")
    assert files(world, "/t") == []
    assert [each.name for each in world.host.vms] == ["web1"]


def test_an_export_names_no_file_outside_it(world, vm):
    """Broken: whoever gives somebody an export could have any disk of the host copied into the VM that is made of it."""
    written(world)
    manifest = world.host.storage.files["/e/quiesce-export.json"]
    manifest.content = manifest.content.replace(b'"vda.qcow2"', b'"../i/web1.qcow2"')
    with pytest.raises(QuiesceError, match="is not the name of a file in its directory"):
        import_vm(world.context, "/e", to="/t", name="web2")
    assert files(world, "/t") == []


@pytest.mark.parametrize("words", [{"same": True}, {"name": "web1"}])
def test_an_import_takes_no_vms_place(words, world, vm):
    """Broken: the VM that is there would be defined on the disks of the export, and all it wrote since be out of its reach."""
    written(world)
    before = vm.definition()
    with pytest.raises(NameTakenError):
        import_vm(world.context, "/e", to="/t", **words)
    assert [each.definition() for each in world.host.vms] == [before]


def test_an_import_takes_no_files_place(world, vm):
    """Broken: another VM's disk would be written over, or removed when the import fails."""
    written(world)
    world.host.storage.make("/t/web2.vda.qcow2", blocks={0: "somebody's"})
    with pytest.raises(RefusedError, match=r"/t/web2\.vda\.qcow2 exists already"):
        import_vm(world.context, "/e", to="/t", name="web2")
    assert world.host.storage.blocks("/t/web2.vda.qcow2") == {0: "somebody's"}


def test_an_import_that_was_killed_when_it_had_defined_its_vm_is_complete(world, vm):
    """Broken: the disks of a VM that runs would be removed."""
    written(world)
    import_vm(world.context, "/e", to="/t", name="web2", start=True)
    other = world.host.vms[-1]
    journal.Journal(world.catalog, other.key, "import").intend(CopyIn("/t/web2.vda.qcow2"))
    doctor(world.context, "web2", repair=True)
    assert journal.interrupted(world.catalog, other.key) == []
    assert world.content(other) == {0: "at first"}


def test_an_import_that_fails_leaves_nothing(world, vm, monkeypatch):
    """Broken: the directory would be refused for good, for what is in it."""
    written(world)

    def fail(_xml: str) -> None:
        raise HypervisorError("libvirt is gone")

    with monkeypatch.context() as patch, pytest.raises(HypervisorError):
        patch.setattr(world.host, "define", fail)
        import_vm(world.context, "/e", to="/t", name="web2")
    assert files(world, "/t") == []
    import_vm(world.context, "/e", to="/t", name="web2")


def test_a_vm_that_is_imported_as_itself_is_based_on_none_of_its_checkpoints(world, vm):
    """Broken: its next checkpoint would be refused, as its disks are not based on the one that the catalog has."""
    written(world)
    vm.power_off()
    world.host.vms.remove(vm)
    import_vm(world.context, "/e", to="/t", same=True, start=True)
    again = world.host.vms[-1]
    assert again.uuid == vm.uuid
    assert world.tree(again).head_parent is None
    assert world.take(again, "b").parent is None
    assert world.names(again) == ["a", "b"]
