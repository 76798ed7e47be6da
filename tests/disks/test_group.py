"""A group's checkpoint on real disks: all parts or none, whatever fails or dies when."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import victim
from lab.bare import Bare, directory
from lab.forest import Forest
from quiesce.context import Context
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError, NameTakenError, NotFoundError, ProofError, RefusedError
from quiesce.model.grades import Consistency
from quiesce.model.names import TRIAL_PREFIX, CheckpointReference
from quiesce.operations import group
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.group_checkpoint import Taken, group_checkpoint
from quiesce.operations.group_restore import group_restore
from quiesce.operations.group_verify import group_verify
from quiesce.operations.tree import tree


class Application:
    """Three VMs without guests, two that are paused and one that is off, in one catalog."""

    def __init__(self, forest: Forest, others: list[Bare]) -> None:
        self.forest = forest
        self.vms = [forest.bare, *others]
        forest.start()
        self.vms[1].domain.createWithFlags(1)
        names = [vm.name for vm in self.vms]
        group.create(self.context, "databases", [f"{names[1]}:back", f"{names[2]}:back"])
        group.create(self.context, "shop", [f"{names[0]}:front", "@databases"])
        self.before = self.state()

    @property
    def context(self) -> Context:
        return self.forest.context

    def state(self) -> list[tuple[set[str], list[str]]]:
        """What each VM is on, and the files beside it."""
        found = []
        for bare in self.vms:
            with contextlib.closing(Vm("qemu:///system", bare.name)) as vm:
                found.append((set(vm.heads().values()), sorted(path.name for path in bare.directory.glob("*.qcow2"))))
        return found

    def names(self) -> list[list[str]]:
        return [[node.name for node in tree(self.context, vm.name).checkpoints] for vm in self.vms]

    def take(self, name: str) -> Taken:
        return group_checkpoint(self.context, "shop", name=name, required=Consistency.CRASH)


@pytest.fixture
def application(forest: Forest) -> Iterator[Application]:
    with directory() as second, directory() as third:
        others = [Bare(second, start=False), Bare(third, start=False)]
        try:
            yield Application(forest, others)
        finally:
            for bare in others:
                bare.remove()


def copies(application: Application) -> list[str]:
    connection = application.forest.bare.connection
    return [domain.name() for domain in connection.listAllDomains() if domain.name().startswith(TRIAL_PREFIX)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_copies_that_run_together_end_with_their_command(application: Application, tmp_path: Path) -> None:
    """Broken: a killed verification would leave VMs that run, or files that nobody dares to remove."""
    application.take("now")
    words = ["group", "verify", "shop@now", "--timeout", "600", "--memory", "64"]
    process = victim.start(words, str(application.forest.bare.directory / "catalog/catalog.db"), tmp_path / "output")
    try:
        until(lambda: len(copies(application)) == 3)
    finally:
        process.kill()
    assert victim.wait(process, 30) == -9
    until(lambda: copies(application) == [])
    doctor(application.context, None, repair=True)
    assert all(list(vm.directory.glob(f"{TRIAL_PREFIX}*")) == [] for vm in application.vms)
    assert [doctor(application.context, vm.name, repair=False)[0].found for vm in application.vms] == [()] * 3
    with pytest.raises(ProofError, match="did not come up in time"):
        group_verify(application.context, "shop@now", timeout_s=1, memory=64 << 20)
    group.delete_checkpoint(application.context, "shop@now")


def test_one_checkpoint_of_all_members(application: Application) -> None:
    """Every member has its part, of a VM that is off too; it goes as a whole, or not without being asked for."""
    taken = application.take("now")
    assert application.names() == [["now"]] * 3
    assert [node.id for node in taken.checkpoints] == list(taken.part.members)
    assert all(node.group == taken.part for node in taken.checkpoints)
    assert [node.off for node in taken.checkpoints] == [False, False, True]
    assert 0 < taken.part.skew_us < 10_000_000
    phases = taken.checkpoints[0].phases_us
    assert phases.keys() == {"switch"}  # one for all: the off one needs none
    one = CheckpointReference(application.vms[0].name, "now")
    with pytest.raises(RefusedError, match="part of the group checkpoint shop@now"):
        delete(application.context, [one])
    with pytest.raises(NameTakenError):
        application.take("now")
    assert [part.name for part in group.show_group(application.context, "shop").checkpoints] == ["now"]
    group.delete_checkpoint(application.context, "shop@now")
    assert application.names() == [[]] * 3
    with pytest.raises(NotFoundError, match="no checkpoint 'now'"):
        group.delete_checkpoint(application.context, "shop@now")
    application.take("again")
    delete(application.context, [CheckpointReference(application.vms[0].name, "again")], break_group=True)
    assert application.names() == [[], ["again"], ["again"]]


def test_all_parts_by_their_own_names_are_the_whole(application: Application) -> None:
    """A pattern that takes every part breaks no group."""
    application.take("now")
    deleted = delete(application.context, [CheckpointReference(vm.name, "n*") for vm in application.vms])
    assert len(deleted.checkpoints) == 3


def test_a_member_that_fails_leaves_nothing_with_the_others(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """One VM that libvirt cannot switch, one that has a checkpoint of that name: all are as before."""
    switch, failing = Vm.switch, application.vms[1].name

    def fail(self: Vm, overlays: dict[str, str]) -> None:
        if self.name == failing:
            raise HypervisorError("not this one")
        switch(self, overlays)

    with monkeypatch.context() as patched:
        patched.setattr(Vm, "switch", fail)
        with pytest.raises(HypervisorError, match="not this one"):
            application.take("now")
    assert (application.names(), application.state()) == ([[]] * 3, application.before)
    checkpoint(application.context, failing, name="now", required=Consistency.CRASH)
    with pytest.raises(NameTakenError):
        application.take("now")
    assert application.names() == [[], ["now"], []]
    assert [item for item in doctor(application.context, None, repair=False) if item.found] == []


def told_by_doctor(application: Application, number: int, *, repair: bool) -> list[str]:
    (diagnosis,) = doctor(application.context, application.vms[number].name, repair=repair)
    return [*diagnosis.found, *diagnosis.mended]


def test_all_members_are_restored_or_the_same_call_goes_on(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is touched where it cannot be had; interrupted, what is done is not done again."""
    taken = application.take("now")
    application.take("later")
    seen: list[str] = []
    power_off, failing = Vm.power_off, application.vms[1].name

    def stop(self: Vm) -> None:
        seen.append(self.name)
        if self.name == failing:
            raise HypervisorError("not this one")
        power_off(self)

    with monkeypatch.context() as patched:
        patched.setattr(Vm, "power_off", stop)
        with pytest.raises(HypervisorError, match="not this one"):
            group_restore(application.context, "shop@now")
    assert seen == [application.vms[0].name, failing]  # the front end first
    assert not told_by_doctor(application, 0, repair=False)
    for number, repair in ((1, False), (2, True)):
        found, *mended = told_by_doctor(application, number, repair=repair)
        assert "the group restore begun at" in found
        assert ["`quiesce group restore shop@now` restores the rest" in line for line in mended] == [True] * repair
    restored = group_restore(application.context, "shop@now")
    assert [item.checkpoint.vm_name for item in restored.restored] == [vm.name for vm in application.vms[1:]]
    assert not any(vm.domain.isActive() for vm in application.vms)
    heads = [tree(application.context, vm.name).head_parent for vm in application.vms]
    assert heads == [node.id for node in taken.checkpoints]
    assert group_restore(application.context, "shop@now").restored == ()
    application.vms[1].domain.create()  # as a call does that is interrupted while it waits for the first tier
    assert group_restore(application.context, "shop@now", start=True).restored == ()
    assert all(vm.domain.isActive() for vm in application.vms)
    assert len(group_restore(application.context, "shop@now", start=True, discard_current=True).restored) == 3
    delete(application.context, [CheckpointReference(application.vms[2].name, "later")], break_group=True)
    with pytest.raises(RefusedError, match="1 of its 3 parts"):
        group_restore(application.context, "shop@later")
    Path(taken.checkpoints[2].disks[0].path).unlink()
    with pytest.raises(NotFoundError):
        group_restore(application.context, "shop@now")


@pytest.mark.timeout(400)
def test_all_parts_or_none_wherever_it_is_killed(application: Application, tmp_path: Path) -> None:
    """Killed before every single write to the journals of all members; then the doctor's hand."""
    catalog = application.forest.url.removeprefix("sqlite:///")
    step, killed = 0, True
    while killed:
        words = ["group", "checkpoint", "shop", "--name", "now", "--require", "crash"]
        process = victim.start(words, catalog, tmp_path / "output", kill_at=step)
        process.join(120)
        assert process.exitcode in (0, -9), (tmp_path / "output").read_text()
        killed = process.exitcode != 0
        application.forest.reopen()
        doctor(application.context, None, repair=True)
        assert [item for item in doctor(application.context, None, repair=False) if item.found] == []
        if application.names() == [[]] * 3:
            assert application.state() == application.before, f"step {step}"
        else:
            assert application.names() == [["now"]] * 3, f"step {step}"
            group.delete_checkpoint(application.context, "shop@now")
        step += 1
    assert step > 15


@pytest.mark.timeout(400)
def test_a_killed_deletion_takes_all_parts_or_none(application: Application, tmp_path: Path) -> None:
    """Broken: some parts would be gone and others there, and nobody would say so."""
    catalog = application.forest.url.removeprefix("sqlite:///")
    step, killed = 0, True
    while killed:
        if application.names() == [[]] * 3:
            application.take("now")
        process = victim.start(["group", "delete", "shop@now"], catalog, tmp_path / "output", kill_at=step)
        process.join(120)
        assert process.exitcode in (0, -9), (tmp_path / "output").read_text()
        killed = process.exitcode != 0
        application.forest.reopen()
        assert application.names() in ([[]] * 3, [["now"]] * 3), f"step {step}"
        doctor(application.context, None, repair=True)
        assert [item for item in doctor(application.context, None, repair=False) if item.found] == []
        step += 1
    assert step > 10
    assert application.state() == application.before
