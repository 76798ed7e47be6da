"""`doctor` and `catalog rebuild` from end to end on a host in memory: what they find, mend, and leave alone.
Each test fails if one check of the host side is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.catalog import journal
from quiesce.catalog.steps import Forget
from quiesce.disks import images
from quiesce.model.names import CheckpointReference
from quiesce.operations.delete import delete
from quiesce.operations.doctor import Diagnosis, doctor
from quiesce.operations.rebuild import rebuild
from quiesce.storage import quarantine
from tests.unit.fake_host import FakeVm
from tests.unit.world import World


def look(world: World, *, repair: bool = False, give_up: tuple[str, ...] = ()) -> Diagnosis:
    return doctor(world.context, "web1", repair=repair, give_up=give_up)[0]


@pytest.fixture
def vm(world: World) -> FakeVm:
    vm = world.vm()
    world.take(vm)
    return vm


@pytest.fixture
def lost(world: World, tmp_path: Path) -> Iterator[World]:
    """The same host, and a catalog that knows nothing."""
    lost = world.without_catalog(tmp_path / "another")
    yield lost
    lost.catalog.close()


# -- doctor


def test_nothing_is_mended_that_nobody_asked_to_mend(world, vm):
    """Broken: whoever only looks would have checkpoints given up and files removed."""
    assert look(world).found == ()
    path = images.manifest_path(world.context, vm, world.tree(vm).find("a"))
    world.host.storage.remove(path)
    found = look(world)
    assert (found.found, found.mended) == (("the manifest of 'a' is missing or out of date",), ())
    assert not world.host.storage.has(path)
    assert look(world, repair=True).mended == ("the manifest of 'a' was written anew",)
    assert look(world).found == ()


def test_what_was_interrupted_is_not_mended_by_looking(world, vm):
    """Broken: whoever only looks would undo an operation that another quiesce can still go on with."""
    orphan = world.host.storage.make("/i/orphan", "/i/web1.qcow2")
    world.catalog.images.note(vm.key, orphan)
    journal.Journal(world.catalog, vm.key, "checkpoint")
    found = look(world)
    assert (len(found.found), found.mended) == (1, ())
    assert "was interrupted" in found.found[0]
    assert world.host.storage.has(orphan)
    look(world, repair=True)
    assert not world.host.storage.has(orphan)
    assert journal.interrupted(world.catalog, vm.key) == []


def test_what_a_manifest_describes_is_not_removed(world, vm):
    """Broken: a checkpoint that the catalog has lost, and could have again, would be gone for good."""
    node = world.take(vm, "b")
    image = node.disks[0].path
    world.restore(vm, discard_current=True)
    world.catalog.checkpoints.remove(world.tree(vm).find("b"), world.tree(vm).find("a").id)
    found = look(world, repair=True)
    assert any("`quiesce catalog rebuild`" in (item.remedy.advice or "") for item in found.items)
    assert world.host.storage.has(image)
    rebuild(world.context)
    assert world.names(vm) == ["a", "b"]


def test_where_somebody_moved_the_vm_is_found_and_mended(world, vm):
    """Broken: no checkpoint of the VM could be taken any more."""
    world.take(vm, "b")
    vm.power_off(clean=True)
    moved, last = world.host.storage.make("/i/moved.qcow2", world.tree(vm).find("a").disks[0].path), vm.sources()["vda"]
    vm.xml = vm.xml.replace(last, moved)
    assert look(world, repair=True).found == (f"disk vda of web1 is {moved}, not {last}, which the VM wrote last",)
    assert "web1 is based on 'a', not on 'b', which the catalog records" in look(world, repair=True, give_up=(last,)).found
    assert world.tree(vm).head_parent == world.tree(vm).find("a").id
    vm.start()
    assert world.take(vm, "c").parent == world.tree(vm).find("a").id


def given_up(world: World, vm: FakeVm) -> set[str]:
    """The files of which the journal says that they may go."""
    steps = journal.steps_of(world.catalog, vm.key, Forget)
    return {path for step, _ in steps if isinstance(step, Forget) for path in step.files}


def test_a_deletion_does_not_say_that_what_it_merged_into_may_go(world, vm):
    """Broken: as soon as nothing names that image, for example after a definition of old, it would be removed with all that
    the VM wrote."""
    world.take(vm, "b")
    base = world.tree(vm).find("a").disks[0].path
    delete(world.context, [CheckpointReference("web1", "a")])
    assert world.tree(vm).find("b").disks[0].path == base
    assert base not in given_up(world, vm)


def test_the_disk_that_the_vm_writes_is_not_given_up_with_a_checkpoint(world, vm):
    """Broken: the user gives up a checkpoint that the VM overwrites, and later a definition of old, with a deletion, would
    remove what the VM wrote."""
    image = world.take(vm, "b").disks[0].path
    last = vm.sources()["vda"]
    vm.power_off()
    vm.xml = vm.xml.replace(last, image)
    vm.start()
    vm.write("vda", 1, "later")
    look(world, repair=True, give_up=("b",))
    assert world.names(vm) == ["a"]
    assert image not in given_up(world, vm)
    assert image in world.catalog.images.live(vm.key)


def test_a_disk_that_the_user_keeps_is_the_vms_own_from_then_on(world, vm):
    """Broken: it would be nobody's, and be removed by what the journal said of it before."""
    world.take(vm, "b")
    vm.power_off(clean=True)
    moved, last = world.host.storage.make("/i/moved.qcow2", world.tree(vm).find("a").disks[0].path), vm.sources()["vda"]
    world.catalog.images.note(vm.key, moved)
    vm.xml = vm.xml.replace(last, moved)
    look(world, repair=True, give_up=(last,))
    assert moved in world.catalog.images.live(vm.key)


def test_a_quarantine_of_somebody_else_holds_nothing_up(tmp_path):
    """Broken: whoever can make a directory beside the images would keep doctor from every VM there."""
    (tmp_path / quarantine.NAME).mkdir(mode=0o700)
    (tmp_path / quarantine.NAME).chmod(0o777)
    assert quarantine.files_in(str(tmp_path)) == []
    (tmp_path / quarantine.NAME).rmdir()
    (tmp_path / quarantine.NAME).symlink_to("/etc")
    assert quarantine.files_in(str(tmp_path)) == []


def test_a_directory_that_cannot_be_read_costs_nothing(world, vm):
    """Broken: while a file system is not mounted, every checkpoint on it would be given up."""
    world.host.storage.unreadable["/i"] = "is it mounted?"
    assert look(world, repair=True).found[0] == "/i, which should have images, cannot be read: is it mounted?"
    assert world.names(vm) == ["a"]
    world.host.storage.unreadable.clear()
    assert look(world).found == ()
    assert world.names(vm) == ["a"]


def test_a_vm_that_libvirt_lost_is_defined_where_it_was(world, vm):
    """Broken: it would start at its last checkpoint, and all that it wrote since would be out of its reach."""
    vm.write("vda", 1, "later")
    vm.power_off()
    world.host.vms.remove(vm)
    assert look(world, repair=True).mended == ("web1 was defined again, with the images that it wrote last",)
    again = world.host.vms[-1]
    again.start()
    assert (again.uuid, world.content(again)) == (vm.uuid, {0: "at first", 1: "later"})
    assert world.names(again) == ["a"]


def test_a_vm_that_libvirt_lost_is_defined_on_what_was_merged_since(world, vm):
    """Broken: what it wrote since would be out of its reach."""
    world.take(vm, "b")
    vm.write("vda", 1, "later")
    delete(world.context, [CheckpointReference("web1", "b")])  # what it writes is committed into an older overlay of its own
    vm.power_off()
    world.host.vms.remove(vm)
    look(world, repair=True)
    again = world.host.vms[-1]
    again.start()
    assert world.content(again) == {0: "at first", 1: "later"}


def test_a_vm_that_libvirt_lost_with_its_disk_begins_at_its_last_checkpoint(world, vm):
    """Broken: it would write the image of its checkpoint itself."""
    overlay = vm.sources()["vda"]
    vm.power_off()
    world.host.vms.remove(vm)
    del world.host.storage.files[overlay]
    look(world, repair=True)
    again = world.host.vms[-1]
    again.start()
    again.write("vda", 1, "later")
    assert world.content(again) == {0: "at first", 1: "later"}
    assert world.host.storage.blocks(world.tree(again).find("a").disks[0].path) == {0: "at first"}


def test_a_vm_that_was_defined_anew_keeps_its_checkpoints_and_another_one_gets_none(world, vm):
    """Broken: a stranger of the same name would be put back to disks that are not its own."""
    vm.power_off()
    world.host.vms.remove(vm)
    stranger = FakeVm(world.host, {"vda": world.host.storage.make("/i/new.qcow2")}, name="web1", uuid="uuid-2")
    assert look(world, repair=True).found == ()
    assert world.names(stranger) == []
    world.host.vms.remove(stranger)
    anew = FakeVm(world.host, vm.sources(), name="web1", uuid="uuid-3")
    look(world, repair=True)
    assert world.names(anew) == ["a"]
    anew.start()
    assert world.tree(anew).head_parent == world.tree(anew).find("a").id


# -- rebuild


def test_a_catalog_that_is_made_again_is_as_it_was(world, vm, lost):
    """Broken: the VM would be based on no checkpoint, and its next one be refused or have the wrong parent."""
    vm.write("vda", 1, "later")
    before = world.tree(vm)
    rebuilt = rebuild(lost.context)
    assert [node.name for node in rebuilt.checkpoints] == ["a"]
    assert lost.tree(vm) == before
    assert lost.take(vm, "b").parent == before.find("a").id
    assert doctor(lost.context, "web1", repair=False)[0].found == ()


def test_what_a_catalog_made_again_deletes_is_removed(world, vm, lost):
    """Broken: images of deleted checkpoints would stay for ever, as nobody knew any more that they are ours."""
    world.take(vm, "b")
    rebuild(lost.context)
    delete(lost.context, [CheckpointReference("web1", "*")])
    assert vm.sources() == {"vda": "/i/web1.qcow2"}
    assert set(world.host.storage.files) == {"/i/web1.qcow2"}


def test_a_catalog_that_has_something_is_not_changed_by_a_manifest(world, vm):
    """Broken: an old manifest would bring back a checkpoint's old name, or its images from before a merge."""
    before = world.tree(vm)
    assert rebuild(world.context).checkpoints == ()
    assert world.tree(vm) == before
