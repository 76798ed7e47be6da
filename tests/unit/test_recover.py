"""operations/recover.py: single deaths that need a certain order of things. tests/model/test_merges.py tries any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from quiesce.catalog import journal
from quiesce.catalog.steps import MakeOverlay, Switch
from quiesce.model.grades import Consistency
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.restore import restore
from quiesce.recovery import recover_all
from tests.samples import KEY
from tests.unit.conftest import Fake, reference


class KilledError(BaseException):
    """The process is gone: nothing that it would still do happens."""


def create(fake: Fake, name: str) -> None:
    checkpoint(fake.context, "web1", name=name, required=Consistency.CRASH)


def killed_after(fake: Fake, steps: int, operation: Callable[[], Any]) -> bool:
    """Whether it was killed after so many changes to the host or the catalog. It is not if there are no more."""
    left, dead = steps, False

    def step() -> None:
        nonlocal left, dead
        dead = dead or left == 0
        if dead:
            raise KilledError
        left -= 1

    fake.host.on_step = fake.catalog.on_step = step
    try:
        operation()
    except BaseException:
        if not dead:
            raise
    finally:
        fake.host.on_step = fake.catalog.on_step = lambda: None
    return dead


def every_death(fake_again: Callable[[], Fake], operation: Callable[[Fake], Any], check: Callable[[Fake], Any]) -> int:
    """Kills the operation after each of its steps, each time on a host made anew. Returns how many there are."""
    steps = 0
    while True:
        fake = fake_again()
        killed = killed_after(fake, steps, lambda fake=fake: operation(fake))
        check(fake)
        fake.catalog.close()
        if not killed:
            return steps
        steps += 1


@pytest.fixture
def grown(again: Callable[[], Fake]) -> Callable[[], Fake]:
    """Makes a VM with the checkpoints a and b, and something written on each."""

    def grow() -> Fake:
        fake = again()
        fake.host.storage.files["/i/vda.qcow2"].blocks = {0: "a"}
        create(fake, "a")
        fake.host.storage.files[fake.vm.sources()["vda"]].blocks = {1: "b"}
        create(fake, "b")
        fake.host.storage.files[fake.vm.sources()["vda"]].blocks = {2: "now"}
        return fake

    return grow


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("deleted", ["a", "b"])
def test_after_a_killed_deletion_the_next_checkpoint_and_restore_are_as_ever(deleted, running, grown):
    """Broken: a VM could not be checkpointed or restored any more, as if somebody had changed its disks, until a repair."""

    def operation(fake: Fake) -> None:
        if running:
            fake.vm.start()
        delete(fake.context, [reference(deleted)])

    def check(fake: Fake) -> None:
        create(fake, "new")
        other = "b" if deleted == "a" else "a"
        restore(fake.context, reference(other))
        assert fake.host.storage.blocks(fake.vm.sources()["vda"]) == ({0: "a", 1: "b"} if other == "b" else {0: "a"})
        new = fake.tree().find("new").disks[0].path
        assert fake.host.storage.blocks(new) == {0: "a", 1: "b", 2: "now"}

    assert every_death(grown, operation, check) > 8


def test_a_deletion_that_waits_does_not_hold_up_the_vm(again):
    """Broken: a clone of one disk of a deleted checkpoint would keep its VM from every checkpoint and restore."""
    fake = again(disks=("vda", "vdb"))
    create(fake, "a")
    create(fake, "b")
    fake.host.storage.make("/i/clone", fake.tree().find("b").image("vdb").path)
    (waiting,) = delete(fake.context, [reference("b")]).waiting
    assert "/i/clone" in waiting.reason
    create(fake, "c")
    restore(fake.context, reference("a"))
    assert [node.name for node in fake.tree().checkpoints][:2] == ["a", "c"]


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("switched", [False, True])
def test_a_recovery_that_is_killed_can_be_done_again(switched, running, grown):
    """Broken: every command for the VM would be refused for good, for a file that is gone as it should be; or a file would be
    left for ever that nothing needs."""

    def interrupted() -> Fake:
        fake = grown()
        if running:
            fake.vm.start()
        fake.catalog.images.note(KEY, "/i/over")
        operation = journal.Journal(fake.catalog, KEY, "checkpoint")
        below = fake.vm.sources()["vda"]
        with operation.step(MakeOverlay("vda", "/i/over", below)):
            fake.host.storage.make("/i/over", below)
        if switched:
            operation.intend(Switch({"vda": "/i/over"}))
        return fake

    def check(fake: Fake) -> None:
        recover_all(fake.context, fake.vm)
        assert journal.interrupted(fake.catalog, KEY) == []
        assert "/i/over" not in fake.host.storage.files
        create(fake, "new")

    assert every_death(interrupted, lambda fake: recover_all(fake.context, fake.vm), check) >= 3


def test_what_was_merged_when_its_deletion_was_killed_can_itself_be_deleted(grown):
    """Broken: a deletion would record anew what the recovery before it has just corrected: images that are gone, or a
    file that another checkpoint is about to be merged into."""

    def operation(fake: Fake) -> None:
        delete(fake.context, [reference("a")])

    def check(fake: Fake) -> None:
        delete(fake.context, [reference("b")])
        delete(fake.context, [reference(node.name) for node in fake.tree().checkpoints])
        assert fake.tree().nodes == ()
        assert fake.host.storage.blocks(fake.vm.sources()["vda"]) == {0: "a", 1: "b", 2: "now"}
        assert fake.host.storage.files.keys() == {"/i/vda.qcow2"}

    every_death(grown, operation, check)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("restored", [False, True])
def test_no_file_is_left_of_a_killed_deletion_once_all_is_deleted(restored, running, grown):
    """Broken: what the VM wrote before would take its space for good."""

    def operation(fake: Fake) -> None:
        if running:
            fake.vm.start()
        delete(fake.context, [reference("b")])

    def check(fake: Fake) -> None:
        if restored:
            restore(fake.context, reference("a"), discard_current=True)
        delete(fake.context, [reference(node.name) for node in fake.tree().checkpoints])
        assert fake.host.storage.files.keys() == {"/i/vda.qcow2"}
        assert fake.host.storage.blocks("/i/vda.qcow2") == ({0: "a"} if restored else {0: "a", 1: "b", 2: "now"})

    every_death(grown, operation, check)
