"""What an operation left open, on a host in memory: a switch of unknown outcome, and what this quiesce does not know. Each test
fails if one check of the host side is left out."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from quiesce.catalog import journal
from quiesce.catalog.steps import PutBack
from quiesce.model.errors import BusyError, OutcomeUnknownError, RefusedError
from quiesce.model.standing import Untouched
from quiesce.operations.checkpoint import checkpoint
from quiesce.recovery import recover_all
from quiesce.taking import participant
from tests.unit.fake_host import FakeVm


@pytest.fixture
def hanging(world, monkeypatch) -> Iterator[tuple[FakeVm, threading.Event]]:
    """A VM whose switch libvirt does not return from until the event is set; afterwards it may have taken effect."""
    monkeypatch.setattr(participant, "SWITCH_TIMEOUT_S", 0.2)
    vm, go_on = world.vm(), threading.Event()
    vm.on_switch = lambda: go_on.wait(30) and None
    vm.busy = BusyError("libvirt is still taking a snapshot of web1")
    yield vm, go_on
    go_on.set()


def test_a_switch_of_unknown_outcome_is_not_undone(world, hanging):
    """Broken: the overlay would be removed, and libvirt then switch the VM to a file that is gone."""
    vm, go_on = hanging
    with pytest.raises(OutcomeUnknownError):
        checkpoint(world.context, "web1", name="a", window_s=0.5)
    assert len(journal.interrupted(world.catalog, vm.key)) == 1
    overlays = [path for path in world.host.storage.files if path.startswith("/i/web1.vda.")]
    assert len(overlays) == 1
    assert any("not undone yet" in text for text in world.warnings())
    with pytest.raises(BusyError):
        recover_all(world.context, vm)
    assert overlays[0] in world.host.storage.files
    go_on.set()
    for _ in range(500):
        if vm.sources()["vda"] == overlays[0]:
            break
        threading.Event().wait(0.01)
    vm.write("vda", 3, "on the overlay")
    vm.busy = None
    recover_all(world.context, vm)
    world.nothing_left(vm)
    assert world.host.storage.blocks("/i/web1.qcow2") == {0: "at first", 3: "on the overlay"}


def test_an_operation_of_an_unknown_verb_stays_open_and_is_said(world):
    """Broken: what a newer quiesce left half done would be closed as mended, and the VM be used as if it were."""
    vm = world.vm()
    operation = journal.Journal(world.catalog, vm.key, "frobnicate")
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"the frobnicate begun at .* this quiesce cannot recover it") as raised:
            world.take(vm)
        assert "newer" in str(raised.value.hint)
    assert [each.id for each in journal.interrupted(world.catalog, vm.key)] == [operation.id]


def test_an_operation_with_an_unknown_step_stays_open(world, monkeypatch):
    """Broken: half of what a newer quiesce did would be undone, and the rest forgotten."""
    vm = world.vm()
    operation = journal.Journal(world.catalog, vm.key, "restore")
    operation.intend(PutBack("a", {}, "<domain/>", Untouched({})))
    monkeypatch.setattr(journal, "BY_NAME", {})
    with pytest.raises(RefusedError, match="PutBack"):
        recover_all(world.context, vm)
    assert len(journal.interrupted(world.catalog, vm.key)) == 1


def test_every_verb_that_is_journalled_can_be_recovered(world):
    """Broken: a verb added tomorrow would leave what nobody can mend."""
    from quiesce import recovery

    for verb in recovery.VERBS:
        operation = journal.Interrupted("id", verb, "then", ())
        assert callable(recovery.recovery_of(operation))
