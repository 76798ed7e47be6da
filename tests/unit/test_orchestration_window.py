"""What becomes of a checkpoint whose window, record or undoing goes wrong, on a host in memory. Each test fails if one check
of the host side is left out."""

from __future__ import annotations

from typing import Any

import pytest

from quiesce.catalog import journal
from quiesce.catalog.steps import MakeOverlay, Switch
from quiesce.disks import images
from quiesce.guests import scripted
from quiesce.model.errors import ConsistencyError, HypervisorError
from quiesce.model.grades import Consistency, Grade
from quiesce.operations.checkpoint import checkpoint
from quiesce.recovery import recover_all
from quiesce.wire.messages import Released
from tests.unit.fake_host import FakeVm


def test_the_guest_is_told_the_window_in_its_own_unit(world):
    """Broken: its dead-man would thaw at once, or hours after this host is gone."""
    world.take(vm := world.vm())
    checkpoint(world.context, "web1", name="b", window_s=7.5)
    asked = world.guests["web1"].asked
    assert asked and asked.window_ms == 7500
    assert world.names(vm) == ["a", "b"]


def test_an_overlay_is_known_to_be_ours_before_it_is_there(world, monkeypatch):
    """Broken: a process that is killed in between would leave a file that nobody ever removes."""
    vm = world.vm()
    make, known = world.host.storage.make_overlay, []

    def looking(path: str, *arguments: Any) -> None:
        known.append(world.catalog.images.has("host1", path))
        known.extend(step.path == path for step in journal.interrupted(world.catalog, vm.key)[0].unfinished(MakeOverlay))
        make(path, *arguments)

    monkeypatch.setattr(world.host.storage, "make_overlay", looking)
    world.take(vm)
    assert known == [True, True]


def test_a_vm_of_which_one_disk_was_switched_is_not_at_a_checkpoint(world, monkeypatch):
    """Broken: the checkpoint would have an image that the VM goes on to write."""
    vm = world.vm(targets=("vda", "vdb"))

    def half(overlays: dict[str, str]) -> None:
        vm._write_to({"vda": overlays["vda"]})
        raise HypervisorError("the connection was lost")

    with monkeypatch.context() as patch, pytest.raises(HypervisorError):
        patch.setattr(vm, "switch", half)
        world.take(vm, required=Consistency.CRASH)
    assert world.tree(vm).nodes == ()
    assert vm.sources() == {"vda": "/i/web1.qcow2", "vdb": "/i/web1-vdb.qcow2"}
    assert journal.interrupted(world.catalog, vm.key) == []


@pytest.mark.parametrize("step", ["thaw", "release back-end"])
def test_what_goes_wrong_after_the_switch_lowers_the_label(world, step):
    """Broken: nobody knows whether the guest held until the switch, and the label would say that it did."""
    vm = world.vm()

    def fail(name: str) -> None:
        if name == step:
            raise HypervisorError("the guest is gone")

    world.guests["web1"].on_step = fail
    node = world.take(vm, required=Consistency.CRASH)
    assert node.consistency is Consistency.CRASH
    assert {writer.grade for writer in node.writers} == {Grade.CRASH}


def test_a_writer_that_says_at_its_release_that_it_did_not_hold_is_heard(world, monkeypatch):
    """Broken: a database that went on while it was to hold would be called application-consistent."""
    vm, guest = world.vm(), world.guests["web1"]
    release = guest.release

    def admit(*arguments: Any) -> Released:
        answer = release(*arguments)
        return Released((scripted.writer("postgresql:main", grade=Grade.CRASH),), answer.monotonic_ns, answer.window_us)

    monkeypatch.setattr(guest, "release", admit)
    with pytest.raises(ConsistencyError, match="only be filesystem-consistent"):
        world.take(vm)
    world.nothing_left(vm)


def test_writers_hear_that_there_is_no_checkpoint(world):
    """Broken: a database would cut its log, in the belief that it can be put back to this moment."""
    vm = world.vm()
    world.guests["web1"].unbroken = False
    with pytest.raises(ConsistencyError):
        world.take(vm)
    assert world.guests["web1"].told == [False]


def test_a_checkpoint_that_is_recorded_is_not_undone(world, monkeypatch):
    """Broken: what the guest wrote since would be committed into the checkpoint's own image."""
    vm = world.vm()
    write, failed = images.write_manifest, []

    def fail_once(*arguments: Any) -> None:
        if not failed:
            failed.append(True)
            vm.write("vda", 1, "after the switch")
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(images, "write_manifest", fail_once)
    with pytest.raises(KeyboardInterrupt):
        world.take(vm)
    (node,) = world.tree(vm).checkpoints
    assert world.host.storage.blocks(node.disks[0].path) == {0: "at first"}
    assert world.content(vm) == {0: "at first", 1: "after the switch"}
    assert journal.interrupted(world.catalog, vm.key) == []
    assert world.guests["web1"].told == [True]


def test_what_cannot_be_undone_now_stays_open(world, monkeypatch):
    """Broken: the VM would stay on the overlay of a checkpoint that does not exist, and nobody would know."""
    vm = world.vm()

    def fail(name: str) -> None:
        if name == "thaw":
            vm.write("vda", 1, "after the switch")
            raise HypervisorError("the guest is gone")

    def busy(*_: object) -> None:
        raise HypervisorError("libvirt is gone")

    world.guests["web1"].on_step = fail
    with monkeypatch.context() as patch, pytest.raises((ConsistencyError, HypervisorError)):
        patch.setattr(vm, "commit_into_base", busy)
        world.take(vm)
    world.guests["web1"].on_step = lambda _: None
    assert len(journal.interrupted(world.catalog, vm.key)) == 1
    assert any("could not be undone" in text for text in world.warnings())
    recover_all(world.context, vm)
    world.nothing_left(vm)
    assert world.content(vm) == {0: "at first", 1: "after the switch"}


def test_a_vm_that_was_started_while_its_checkpoint_was_killed_stays_where_it_is(world):
    """Broken: at its next start it would lack what it wrote, or an image."""
    vm = world.vm()
    overlay = world.host.storage.make("/i/overlay", "/i/web1.qcow2")
    world.catalog.images.note(vm.key, overlay)
    operation = journal.Journal(world.catalog, vm.key, "checkpoint")
    operation.intend(MakeOverlay("vda", overlay, "/i/web1.qcow2"))
    operation.intend(Switch({"vda": overlay}))
    vm.xml = vm.xml.replace("/i/web1.qcow2", overlay)  # it ran before that, on what it had
    vm.write("vda", 1, "as it runs")
    recover_all(world.context, vm)
    assert overlay not in world.host.storage.files
    vm.power_off()
    vm.start()
    assert world.content(vm) == {0: "at first", 1: "as it runs"}


@pytest.fixture
def killed(world) -> FakeVm:
    """A VM on the overlay of a checkpoint that was not recorded when its process was killed."""
    vm: FakeVm = world.vm()
    overlay = world.host.storage.make("/i/overlay", "/i/web1.qcow2")
    world.catalog.images.note(vm.key, overlay)
    operation = journal.Journal(world.catalog, vm.key, "checkpoint")
    operation.intend(MakeOverlay("vda", overlay, "/i/web1.qcow2"))
    operation.intend(Switch({"vda": overlay}))
    vm._write_to({"vda": overlay})
    vm.write("vda", 1, "on the overlay")
    return vm


def test_a_merge_that_a_killed_owner_left_in_libvirt_is_ended_first(world, killed):
    """Broken: no operation on the VM would be possible until somebody ends the block job by hand."""
    killed.jobs = {"vda": "/i/web1.qcow2"}
    recover_all(world.context, killed)
    assert (killed.jobs, journal.interrupted(world.catalog, killed.key)) == ({}, [])
    assert killed.sources() == {"vda": "/i/web1.qcow2"}
    assert world.content(killed) == {0: "at first", 1: "on the overlay"}


def test_the_helper_that_a_killed_owner_left_is_ended_first(world, killed):
    """Broken: its image lock would keep the VM from every operation, and from starting."""
    killed.power_off()
    world.host.helper = {"/i/overlay"}
    recover_all(world.context, killed)
    killed.start()
    assert (world.host.helper, journal.interrupted(world.catalog, killed.key)) == (set(), [])
    assert world.content(killed) == {0: "at first", 1: "on the overlay"}
