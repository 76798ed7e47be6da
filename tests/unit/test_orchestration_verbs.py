"""The verbs on one VM, from end to end on a host in memory: what they refuse, what they leave, and what they may not touch.
Each test fails if one check of the host side is left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.catalog import journal, manifest
from quiesce.catalog.steps import PutBack
from quiesce.disks import images
from quiesce.guests import scripted
from quiesce.model.errors import BusyError, ConsistencyError, HypervisorError, NotFoundError, RefusedError
from quiesce.model.grades import Consistency, Grade
from quiesce.model.names import CheckpointReference
from quiesce.model.settings import Settings, Type
from quiesce.model.standing import Untouched
from quiesce.model.tree import Kind, Role
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.rename import rename
from quiesce.operations.restore import restore
from quiesce.operations.start import start
from quiesce.operations.writers import writers
from quiesce.recovery import recover_all
from tests.unit.world import WINDOW_S


def a(name: str = "a") -> CheckpointReference:
    return CheckpointReference("web1", name)


# -- checkpoint


def test_a_vm_for_which_checkpoints_are_disabled_gets_one_only_by_name(world):
    """Broken: whoever disabled them, as a service that must never stand still, would have it held all the same."""
    vm = world.vm()
    world.catalog.settings.put(vm.key, Settings(type=Type.DISABLED))
    with pytest.raises(RefusedError, match="the settings of web1 disable checkpoints"):
        checkpoint(world.context, "web1", name="a")
    world.nothing_left(vm)
    assert checkpoint(world.context, "web1", name="a", type=Type.PRODUCTION, window_s=WINDOW_S).name == "a"


def test_a_checkpoint_is_not_taken_on_a_chain_that_somebody_changed(world):
    """Broken: its parent in the tree would be a checkpoint whose content it does not have."""
    vm = world.vm()
    world.take(vm)
    world.host.storage.files[vm.sources()["vda"]].below = None
    with pytest.raises(RefusedError, match="somebody changed the backing chain of disk vda"):
        world.take(vm, "b")
    assert world.names(vm) == ["a"]


def test_a_vm_with_saved_memory_is_left_alone(world):
    """Broken: its memory would be resumed on disks that are not those it was saved with, and ruin them."""
    vm = world.vm(running=False)
    vm.clean = vm.managed_save = True
    with pytest.raises(RefusedError, match="saved memory"):
        world.take(vm)
    assert vm.sources() == {"vda": "/i/web1.qcow2"}
    vm.managed_save = False
    world.take(vm)
    vm.managed_save = True
    for refused in (lambda: world.restore(vm), lambda: world.take(vm, "b")):
        with pytest.raises(RefusedError, match="saved memory"):
            refused()
    assert world.names(vm) == ["a"]


def test_a_checkpoint_says_which_disks_it_leaves_out(world):
    """Broken: a restore would throw away the disk that was to stay as it is."""
    vm = world.vm(targets=("vda", "vdb"))
    node = checkpoint(world.context, "web1", name="a", exclude=("vdb",), window_s=WINDOW_S)
    assert ([disk.target for disk in node.disks], node.excluded) == (["vda"], ("vdb",))
    vm.write("vda", 1, "later")
    vm.write("vdb", 1, "later")
    world.restore(vm)
    assert (world.content(vm), world.content(vm, "vdb")) == ({0: "at first"}, {0: "at first", 1: "later"})


def test_a_second_operation_on_the_vm_is_refused_while_the_first_runs(world):
    """Broken: two operations would switch, merge and remove the images of one VM at once."""
    vm = world.vm()
    world.take(vm)
    refused: list[str] = []

    def interfere(step: str) -> None:
        if step == "prepare":
            with pytest.raises(BusyError, match="quiesce checkpoint web1"):
                delete(world.context, [a()])
            refused.append(step)

    world.guests["web1"].on_step = interfere
    world.take(vm, "b")
    assert refused == ["prepare"]
    assert world.names(vm) == ["a", "b"]


# -- standard checkpoints


def test_a_standard_checkpoint_goes_back_running_with_its_memory(world):
    """Broken: the VM would boot on disks that its memory was in the middle of writing."""
    vm = world.vm()
    node = checkpoint(world.context, "web1", name="a", type=Type.STANDARD)
    memory = node.file(Role.MEMORY)
    assert memory is not None
    assert (node.kind, node.consistency) == (Kind.STANDARD, Consistency.CRASH)
    vm.write("vda", 1, "later")
    assert world.restore(vm).started
    assert (vm.active(), vm.resumed_from) == (True, memory.path)
    assert world.content(vm) == {0: "at first"}


def test_a_standard_checkpoint_has_all_disks(world):
    """Broken: the guest's memory would go back without the disk, and write to it what it remembers."""
    vm = world.vm(targets=("vda", "vdb"))
    with pytest.raises(RefusedError, match="cannot leave out disk vdb"):
        checkpoint(world.context, "web1", name="a", type=Type.STANDARD, exclude=("vdb",))
    world.nothing_left(vm)


def test_a_standard_checkpoint_that_fails_ends_the_saving(world):
    """Broken: libvirt would go on, and switch the VM to an overlay that was removed meanwhile."""
    vm = world.vm()

    def fail() -> None:
        raise HypervisorError("the connection was lost")

    vm.on_save = fail
    recovered: list[bool] = []
    end_saving = vm.end_saving
    vm.end_saving = lambda: (recovered.append(vm.saving), end_saving())  # type: ignore[method-assign, assignment]
    with pytest.raises(HypervisorError):
        checkpoint(world.context, "web1", name="a", type=Type.STANDARD)
    assert recovered == [True, False]  # at once, and not only when it is undone
    world.nothing_left(vm)


def test_memory_of_another_name_is_refused_before_the_vm_is_stopped(world):
    """Broken: libvirt would refuse it when the VM is off and its disks are another's."""
    vm = world.vm()
    node = checkpoint(world.context, "web1", name="a", type=Type.STANDARD)
    memory = node.file(Role.MEMORY)
    assert memory is not None
    world.host.storage.files[memory.path].content = vm.xml.replace("web1", "web2").encode()
    with pytest.raises(RefusedError, match="the memory of 'a' was saved when the VM was named web2"):
        world.restore(vm)
    assert vm.active()


# -- restore


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
    assert (vm.sources(), vm.file_disks(next_start=True)) == (left, left)
    assert world.names(vm) == ["a"]
    assert world.tree(vm).head_parent == world.tree(vm).find("a").id
    assert world.content(vm) == {0: "at first", 1: "later"}
    assert journal.interrupted(world.catalog, vm.key) == []


def test_a_restore_that_discards_is_completed_by_whoever_comes_next(world):
    """Broken: the VM would be defined on images that are removed as nobody's."""
    vm = world.vm()
    node = world.take(vm)
    vm.power_off()
    made = world.host.storage.make("/i/made", "/i/web1.qcow2")
    world.catalog.images.note(vm.key, made)
    operation = journal.Journal(world.catalog, vm.key, "restore")
    operation.intend(PutBack(node.id, {"vda": made}, vm.definition(), Untouched({made: "1"})))
    vm.xml = vm.xml.replace(vm.sources()["vda"], made)
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


# -- delete


def test_only_what_is_named_is_deleted(world):
    """Broken: checkpoints that nobody named would be gone."""
    vm = world.vm()
    for name in "abc":
        world.take(vm, name)
    assert [node.name for node in delete(world.context, [a()], dry_run=True).checkpoints] == ["a"]
    assert world.names(vm) == ["a", "b", "c"]
    delete(world.context, [a()])
    assert world.names(vm) == ["b", "c"]
    assert [node.name for node in delete(world.context, [a("b")], subtree=True).checkpoints] == ["b", "c"]
    assert world.names(vm) == []
    assert world.content(vm) == {0: "at first"}


@pytest.mark.parametrize(("what", "value"), [("snapshots", 1), ("job", "a block job on disk vda")])
def test_nothing_is_merged_while_libvirt_has_something_of_its_own_there(what, value, world):
    """Broken: snapshots of libvirt's own would lose the images they are based on; a backup would read what is merged."""
    vm = world.vm()
    world.take(vm)
    files = set(world.host.storage.files)
    setattr(vm, what, value)
    with pytest.raises((RefusedError, BusyError)):
        delete(world.context, [a()])
    assert world.names(vm) == ["a"]
    assert set(world.host.storage.files) == files


def test_the_disks_of_saved_memory_are_not_merged(world):
    """Broken: the memory names the image that was merged away, and the VM would not start any more."""
    vm = world.vm()
    world.take(vm)
    vm.power_off()
    vm.managed_save = True
    with pytest.raises(RefusedError, match="saved memory"):
        delete(world.context, [a()])
    assert vm.sources()["vda"] in world.host.storage.files
    assert vm.sources()["vda"] != "/i/web1.qcow2"


@pytest.mark.parametrize("clean", [False, True])
def test_a_merge_makes_no_better_of_what_a_guest_left(clean, world):
    """Broken: disks of a guest that lost its power would be called application-consistent once something was deleted."""
    vm = world.vm(running=False)
    vm.clean = True
    world.take(vm)
    world.take(vm, "b")
    vm.start()
    vm.write("vda", 1, "later")
    vm.power_off(clean=clean)
    delete(world.context, [a()])
    expected = Consistency.APPLICATION if clean else Consistency.CRASH
    assert world.take(vm, "c", Consistency.CRASH).consistency is expected


# -- rename


def test_a_new_name_is_in_the_manifest(world):
    """Broken: a catalog that is made again would bring the old name back."""
    vm = world.vm()
    node = world.take(vm)
    rename(world.context, a(), "b")
    path = images.manifest_path(world.context, vm, node)
    assert manifest.load(world.host.storage.read(path)).checkpoint.name == "b"


# -- start


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


# -- writers


def test_what_is_expected_depends_on_required_writers_alone(world):
    """Broken: a program that does not matter would make everybody believe that no checkpoint can be had."""
    world.vm()
    cache = scripted.writer("cache", grade=Grade.REFUSED)
    world.guests["web1"].writers = (scripted.writer("postgresql:main"), replace(cache, required=False))
    assert writers(world.context, "web1").expected is Consistency.APPLICATION
    world.guests["web1"].writers = (scripted.writer("postgresql:main"), cache)
    assert writers(world.context, "web1").expected is Consistency.FILESYSTEM
    with pytest.raises(ConsistencyError, match="only be filesystem-consistent"):
        world.take(world.host.vms[0])


def test_a_restore_leaves_the_state_of_a_vm_that_was_refused(world):
    """Broken: a user who is told no would find the VM stopped."""
    vm = world.vm()
    world.take(vm)
    vm.job = "a job (backup, migration, dump or save)"
    with pytest.raises(BusyError):
        restore(world.context, a())
    assert vm.active()
    assert world.names(vm) == ["a"]
