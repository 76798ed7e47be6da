"""Another program writes into an image of a checkpoint, on a host in memory: whoever looks at the checkpoint is told, and no
label outlives it. Each test fails if one check of the host side is left out."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from quiesce.catalog import exported, manifest
from quiesce.catalog.schema import fingerprints
from quiesce.cli import render
from quiesce.disks import images
from quiesce.disks.survey import survey
from quiesce.model.errors import BusyError, ConsistencyError, RefusedError
from quiesce.model.grades import Consistency, Grade
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint
from quiesce.operations.doctor import doctor
from quiesce.operations.export import export
from quiesce.operations.group_checkpoint import group_checkpoint
from quiesce.operations.group_restore import group_restore
from quiesce.operations.rebuild import rebuild
from quiesce.operations.restore import restore
from quiesce.operations.tree import show_checkpoint
from quiesce.results import to_json
from tests.unit.changed_images import IMAGE, change, found, labels, vm_with, writing_before
from tests.unit.fake_host import FakeVm
from tests.unit.world import WINDOW_S, World

APPLICATION, CRASH = Consistency.APPLICATION, Consistency.CRASH


def shown(world: World, name: str = "a") -> Checkpoint:
    return show_checkpoint(world.context, CheckpointReference("web1", name))


def accept(world: World, name: str = "a") -> None:
    restore(world.context, CheckpointReference("web1", name), discard_current=True, accept_changed=True)


# -- what is shown


def test_a_changed_image_lowers_what_is_shown_and_is_named(world):
    """Broken: somebody would trust a checkpoint whose disk `virsh blockcommit` or a rescue program has written to."""
    vm = vm_with(world, "a")
    before = shown(world)
    assert (before.consistency, before.changed) == (APPLICATION, ())
    change(world)
    after = shown(world)
    assert (after.consistency, after.changed) == (CRASH, (IMAGE,))
    assert f"another program changed the image {IMAGE} after a checkpoint was taken" in after.warnings[-1]
    assert [writer.grade for writer in after.writers] == [Grade.CRASH]
    assert f"changed by another program: {IMAGE}" in render.node_line(after).plain
    assert to_json(after)["changed"] == [IMAGE]
    assert world.tree(vm).find("a").consistency is APPLICATION  # who only looks changes nothing


def test_a_changed_backing_file_changes_all_that_read_it_and_nothing_else(world):
    """Broken: a checkpoint would keep its label although half of its content comes from a changed image, or lose it for an
    image that it does not read."""
    vm = vm_with(world, "a", "b", "c")
    image = world.tree(vm).find("b").disks[0].path
    world.restore(vm, "a", start=True)
    world.take(vm, "beside")
    change(world, image)
    assert labels(world) == {"a": APPLICATION, "b": CRASH, "c": CRASH, "beside": APPLICATION} | {
        node.name: CRASH for node in world.tree(vm).checkpoints if node.name.startswith("before restore")
    }
    assert shown(world, "c").changed == (image,)


def test_an_image_below_the_first_checkpoint_counts(world):
    """Broken: whoever updates the template that VMs are clones of would change their checkpoints unnoticed."""
    vm = world.vm()
    world.host.storage.make(IMAGE, world.host.storage.make("/i/template.qcow2"))
    world.take(vm)
    change(world, "/i/template.qcow2")
    assert shown(world).changed == ("/i/template.qcow2",)
    assert "/i/template.qcow2" in found(world)[0]


def test_what_cannot_be_looked_at_is_said(world):
    """Broken: `tree` would fail while a directory is not mounted, or be silent about what it did not look at."""
    vm_with(world, "a")
    change(world)
    world.host.storage.unreadable["/i"] = "not mounted"
    assert labels(world) == {"a": APPLICATION}
    assert world.warnings() == ["it was not looked whether another program changed the images in /i: not mounted"]


def given_to_qemu(world: World) -> None:
    """As libvirt does it at a start: the inode is changed, and nothing is written."""
    file = world.host.storage.files[IMAGE]
    before = file.written
    world.host.storage.touch(IMAGE)
    file.written, file.access = before, "qemu"


def test_an_image_that_libvirt_gives_to_qemu_is_the_same_and_that_is_recorded(world):
    """Broken: each first start of a VM would make its checkpoints unknown; or the new owner explain all that comes later."""
    vm = vm_with(world, "a")
    given_to_qemu(world)
    assert labels(world) == {"a": APPLICATION}
    world.take(vm, "b")
    assert found(world) == ()
    assert world.catalog.fingerprints.of(vm.key)[IMAGE].access == "qemu"
    given_to_qemu(world)
    assert labels(world) == {"a": CRASH, "b": CRASH}


def test_a_new_owner_does_not_explain_other_tables(world):
    """Broken: whoever writes, sets the time back and gives the file away would be believed, by the next checkpoint for good."""
    vm = vm_with(world, "a")
    del world.host.storage.files[IMAGE].blocks[0]  # as a discard; the file keeps its length
    given_to_qemu(world)
    assert labels(world) == {"a": CRASH}
    world.take(vm, "b", CRASH)
    assert labels(world) == {"a": CRASH, "b": CRASH}


# -- restore


def test_a_changed_checkpoint_is_not_restored_unless_somebody_accepts_it(world):
    """Broken: a server would come back with content that nobody vouches for, and be taken for the one that was checkpointed."""
    vm = vm_with(world, "a")
    change(world)
    with pytest.raises(RefusedError, match=IMAGE) as refused:
        world.restore(vm)
    assert refused.value.details == {"changed": [IMAGE]}
    assert vm.active()
    result = restore(world.context, CheckpointReference("web1", "a"), discard_current=True, accept_changed=True)
    assert (result.checkpoint.consistency, world.tree(vm).find("a").consistency) == (CRASH, CRASH)
    assert world.content(vm)[9] == "theirs"
    with pytest.raises(ConsistencyError):
        world.take(vm, "b")
    assert world.take(vm, "b", CRASH).consistency is CRASH
    assert found(world) == ()


def test_nothing_is_recorded_of_a_restore_that_is_refused_for_something_else(world):
    """Broken: a restore that was refused would have changed a label."""
    vm = vm_with(world, "a")
    change(world)
    vm.job = "a job (backup, migration, dump or save)"
    with pytest.raises(BusyError):
        accept(world)
    assert world.tree(vm).find("a").consistency is APPLICATION


def test_no_member_of_a_group_is_touched_if_the_image_of_one_was_changed(world):
    """Broken: half of a group would go back before the other half is refused."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    change(world, "/i/two.qcow2")
    with pytest.raises(RefusedError, match=r"/i/two\.qcow2"):
        group_restore(world.context, "shop@g")
    assert one.active()
    assert two.active()
    result = group_restore(world.context, "shop@g", accept_changed=True)
    assert [item.checkpoint.consistency for item in result.restored] == [APPLICATION, CRASH]
    with pytest.raises(RefusedError, match="spoilt"):
        group_restore(world.context, "shop@g")
    assert group_restore(world.context, "shop@g", accept_changed=True).restored == ()  # both have that content
    change(world, "/i/one.qcow2")
    (again,) = group_restore(world.context, "shop@g", accept_changed=True).restored
    assert (again.checkpoint.vm_name, again.checkpoint.consistency) == ("one", CRASH)


# -- what inherits a label


def test_a_checkpoint_of_a_vm_that_is_off_does_not_inherit_the_label_of_a_changed_one(world):
    """Broken: the label of `a` would be given to a content that `a` never had."""
    vm = vm_with(world, "a")
    world.restore(vm, discard_current=True)
    assert world.take(vm, "same").consistency is APPLICATION
    change(world)
    with pytest.raises(ConsistencyError, match=IMAGE):
        world.take(vm, "b")
    taken = world.take(vm, "b", CRASH)
    assert (taken.consistency, taken.changed) == (CRASH, (IMAGE,))


def test_a_vm_that_is_off_does_not_inherit_the_label_if_the_time_of_a_write_is_set_back(world):
    """Broken: who writes into the disk of a VM that is off, and sets the time back, would give the label to his own bytes."""
    vm = vm_with(world, "a")
    world.restore(vm, discard_current=True)
    path = vm.sources()["vda"]
    file = world.host.storage.files[path]
    before = file.written
    change(world, path)
    file.written = before
    with pytest.raises(ConsistencyError):
        world.take(vm, "b")


def test_a_running_vm_on_a_changed_image_is_not_consistent_until_somebody_has_decided(world):
    """Broken: a guest whose disk was changed below it would be called application-consistent."""
    vm = vm_with(world, "a")
    change(world)
    with pytest.raises(ConsistencyError, match=IMAGE) as refused:
        world.take(vm, "b")
    assert "doctor web1 --repair" in str(refused.value.hint)
    assert world.take(vm, "b", CRASH).consistency is CRASH
    found(world, repair=True)
    assert world.take(vm, "c").consistency is APPLICATION
    assert labels(world) == {"a": CRASH, "b": CRASH, "c": APPLICATION}


def test_a_guest_that_shut_itself_down_does_not_vouch_for_what_was_written_below_it_since(world):
    """Broken: after a repair, a VM that was off while its backing file was changed would be called application-consistent."""
    vm = vm_with(world, "a")
    vm.power_off(clean=True)
    change(world)
    found(world, repair=True)
    with pytest.raises(ConsistencyError):
        world.take(vm, "b")
    vm.start()
    vm.write("vda", 2, "it runs again")
    vm.power_off(clean=True)
    assert world.take(vm, "b").consistency is APPLICATION


def test_a_vm_that_is_off_inherits_nothing_if_an_image_is_changed_after_the_plan(world, monkeypatch):
    """Broken: a change that comes after the first look would be recorded with the label of what was there before."""
    vm = vm_with(world, "a")
    world.restore(vm, discard_current=True)
    make = images.make_overlay

    def change_first(*arguments: Any, **named: Any) -> str:
        change(world)
        return make(*arguments, **named)

    monkeypatch.setattr(images, "make_overlay", change_first)
    with pytest.raises(ConsistencyError, match=IMAGE):
        world.take(vm, "b")
    assert world.names(vm) == ["a"]


def test_the_state_before_a_restore_says_on_what_it_was(world):
    """Broken: the state that a restore keeps would not name the image that was changed below it."""
    vm = vm_with(world, "a", "b")
    change(world, world.tree(vm).find("b").disks[0].path)
    safety = world.restore(vm, "a").safety
    assert safety is not None
    assert safety.changed == (world.tree(vm).find("b").disks[0].path,)


def test_what_is_changed_while_a_checkpoint_is_taken_is_seen_afterwards(world):
    """Broken: a change between the judgement and the record would be recorded as what was judged."""
    vm = world.vm(running=False)
    vm.clean = True
    redefine = vm.redefine

    def change_first(xml: str) -> None:
        change(world)
        redefine(xml)

    vm.redefine = change_first  # type: ignore[method-assign]
    world.take(vm)
    assert shown(world).changed == (IMAGE,)


def test_the_label_that_is_recorded_is_the_one_that_is_required(world, monkeypatch):
    """Broken: a VM that somebody ran between plan and switch would have a crash-consistent checkpoint that nobody accepted."""
    vm = vm_with(world, "a")
    world.restore(vm, discard_current=True)
    make = images.make_overlay

    def run_first(*arguments: Any, **named: Any) -> str:
        vm.start()
        vm.write("vda", 1, "x")
        vm.power_off()
        return make(*arguments, **named)

    monkeypatch.setattr(images, "make_overlay", run_first)
    with pytest.raises(ConsistencyError):
        world.take(vm, "b")
    assert world.names(vm) == ["a"]


# -- doctor, export, rebuild


def test_doctor_names_the_file_and_lowers_the_labels_for_good(world):
    """Broken: `doctor` would be content, or what it repaired be forgotten, or the next change not be seen."""
    vm = vm_with(world, "a", "b")
    change(world)
    (text,) = found(world)
    changed = f"another program changed the image {IMAGE} after a checkpoint was taken"
    assert text == f"{changed}: checkpoints 'a', 'b' are crash-consistent at best"
    assert labels(world) == {"a": CRASH, "b": CRASH}
    (mended,) = doctor(world.context, "web1", repair=True)[0].mended
    assert mended == "checkpoints 'a', 'b' are recorded as spoilt, and crash-consistent at best"
    assert found(world) == ()
    assert {node.name: (node.consistency, node.changed) for node in world.tree(vm).checkpoints} == {
        "a": (CRASH, (IMAGE,)),
        "b": (CRASH, (IMAGE,)),
    }
    change(world)
    assert len(found(world)) == 1
    accept(world)


def test_doctor_ends_although_somebody_goes_on_writing(world, monkeypatch):
    """Broken: `doctor` would never end, as each look finds the image changed once more."""
    vm_with(world, "a", "b")
    monkeypatch.setattr("quiesce.repair.looks.survey", writing_before(world, survey))
    assert len(found(world)) == 1
    assert len(found(world, repair=True)) == 2  # that it was changed, and that it may have been changed again


def test_an_export_of_a_changed_checkpoint_says_what_it_is(world):
    """Broken: an export would carry a label that its content does not have."""
    vm_with(world, "a")
    change(world)
    with pytest.raises(RefusedError, match=f"'a' cannot be exported as what it was: .*{IMAGE}"):
        export(world.context, CheckpointReference("web1", "a"), "/e")
    done = export(world.context, CheckpointReference("web1", "a"), "/e", accept_changed=True)
    assert done.export.checkpoint.consistency is CRASH
    assert exported.load(world.host.storage.read("/e/quiesce-export.json")).checkpoint.changed == (IMAGE,)
    assert any(IMAGE in text for text in world.warnings())


def test_a_catalog_that_was_made_again_knows_what_the_images_were(world, tmp_path):
    """Broken: with the catalog, what tells that images were changed would be lost."""
    vm_with(world, "a", "b")
    lost = world.without_catalog(tmp_path / "another")
    rebuild(lost.context)
    assert found(lost) == ()
    change(world)
    assert labels(lost) == {"a": CRASH, "b": CRASH}
    lost.catalog.close()


def test_checkpoints_of_an_older_quiesce_are_compared_from_the_next_checkpoint_on(world):
    """Broken: after an upgrade the old checkpoints would never be looked after, or all be called changed."""
    vm = vm_with(world, "a")
    with world.catalog.database.transaction() as connection:
        connection.execute(sa.delete(fingerprints))
    node = world.tree(vm).find("a")
    whole = images.manifest_of(world.context, vm, node)
    content = manifest.dump(whole, world.catalog.seal)
    world.host.storage.write(images.manifest_path(world.context, vm, node), content)
    assert found(world) == ()
    change(world)
    assert (labels(world), found(world)) == ({"a": APPLICATION}, ())
    world.take(vm, "b")
    assert found(world) == ()
    change(world)
    assert labels(world) == {"a": CRASH, "b": CRASH}


def test_a_vm_that_was_defined_anew_keeps_what_its_images_were(world):
    """Broken: `doctor` would take over the checkpoints and forget what tells that their images were changed."""
    vm = vm_with(world, "a")
    vm.power_off()
    world.host.vms.remove(vm)
    FakeVm(world.host, vm.sources(), name="web1", uuid="another")
    found(world, repair=True)
    change(world)
    assert labels(world) == {"a": CRASH}
