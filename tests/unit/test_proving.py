"""server/proving.py: which checkpoints are verified in the background, and what becomes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quiesce.guests.scripted import ScriptedGuest
from quiesce.model.errors import AgentError, CancelledError
from quiesce.model.names import TRIAL_PREFIX
from quiesce.model.proof import Proof, ProofState
from quiesce.model.settings import Settings, VerifyWhen
from quiesce.model.starts import Did, Start
from quiesce.model.tree import Kind, Tree
from quiesce.server import proving
from quiesce.server.proving import Prover, due
from quiesce.server.said import Said, Severity
from quiesce.wire.messages import Verified
from tests.samples import node
from tests.unit.test_orchestration_group_verify import MACHINE
from tests.unit.test_orchestration_verify import nothing_of_a_copy
from tests.unit.world import World

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def proof(hours_ago: float) -> Proof:
    return Proof(ProofState.PROVEN, (NOW - timedelta(hours=hours_ago)).isoformat(), "it came up", 40)


OLD, NEW = node("a", created="2026-01-01T00:00:00+00:00"), node("b", created="2026-01-02T00:00:00+00:00")


@pytest.mark.parametrize(
    ("nodes", "when", "expected"),
    [
        ([], VerifyWhen.ALWAYS, None),
        ([OLD, NEW], VerifyWhen.ALWAYS, "b"),
        ([OLD, NEW], VerifyWhen.NEVER, None),
        ([OLD, replace(NEW, proof=proof(99))], VerifyWhen.ALWAYS, None),  # older ones are not tried
        ([OLD, replace(NEW, kind=Kind.SAFETY)], VerifyWhen.ALWAYS, "a"),
        ([OLD, replace(NEW, hidden=True)], VerifyWhen.ALWAYS, "a"),
        ([replace(OLD, proof=proof(1)), NEW], VerifyWhen.ALWAYS, "b"),
        ([replace(OLD, proof=proof(1)), NEW], VerifyWhen.DAILY, None),
        ([replace(OLD, proof=proof(25)), NEW], VerifyWhen.DAILY, "b"),
        ([OLD, NEW], VerifyWhen.DAILY, "b"),
    ],
)
def test_which_checkpoint_is_due(nodes, when, expected):
    """Broken: a host would boot copies all day, or none at all."""
    found = due(Tree.of(nodes, None), when, NOW)
    assert (found.id if found else None) == expected


class Service:
    """A prover, and what it says."""

    def __init__(self, world: World) -> None:
        self.said: list[Said] = []
        self.stop = threading.Event()
        self.prover = Prover(world.context, self.stop, self.said.append)
        self.prover.begin(world.host.id)

    def wait_for(self, text: str) -> Said:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for said in list(self.said):
                if text in said.text:
                    return said
            time.sleep(0.01)
        raise AssertionError(self.said)

    def end(self) -> None:
        self.stop.set()
        self.prover.end(20)


@pytest.fixture
def watching(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Service]]:
    """Two VMs with a checkpoint each, that have them verified always."""
    monkeypatch.setattr(proving, "ROUND_S", 0.01)
    monkeypatch.setattr("quiesce.operations.copies.LATE_S", 0.0)
    monkeypatch.setattr("quiesce.operations.copies.POLL_S", 0.01)
    for name in ("web1", "web2"):
        vm = world.vm(name)
        vm.xml = vm.xml.replace("<devices>", MACHINE)
        world.take(vm)
        world.catalog.settings.put(vm.key, Settings(verify=VerifyWhen.ALWAYS))
    world.guests[TRIAL_PREFIX] = ScriptedGuest()
    world.guests[TRIAL_PREFIX].verified = Verified((Start("postgresql:main", "postgresql", did=Did.NOTHING),), (), 4000)
    services: list[Service] = []

    def start() -> Service:
        services.append(Service(world))
        return services[-1]

    yield start
    for service in services:
        service.end()


def proofs(world: World) -> list[Any]:
    return [node.proof and node.proof.state for vm in world.host.vms[:2] for node in world.tree(vm).checkpoints]


def test_new_checkpoints_are_proven_one_after_the_other(watching, world):
    """Broken: the setting would do nothing, or two copies run at once on a small host."""
    running: list[int] = []
    world.guests[TRIAL_PREFIX].on_step = lambda _: running.append(
        sum(vm.name.startswith(TRIAL_PREFIX) for vm in world.host.vms)
    )
    service = watching()
    service.wait_for("web1: 'a': was booted aside: proven")
    service.wait_for("web2: 'a': was booted aside: proven")
    world.take(world.host.vms[0], "b")
    service.wait_for("web1: 'b': was booted aside: proven")
    assert running == [1, 1, 1]
    service.end()
    assert proofs(world) == [ProofState.PROVEN] * 3
    assert len(service.said) == 3  # and none of them twice
    nothing_of_a_copy(world)


def test_one_that_is_not_as_claimed_is_an_error_in_the_log(watching, world):
    """Broken: nobody would hear of a damaged checkpoint until it is needed."""
    world.guests[TRIAL_PREFIX].verified = Verified((Start("postgresql:main", "postgresql", failure="page 3 is bad"),), (), 1)
    said = watching().wait_for("page 3 is bad")
    assert said.severity is Severity.ERROR


def test_one_that_cannot_be_tried_is_left_alone_for_a_while(watching, world):
    """Broken: a guest with an old agent would be booted for ever, and the next VM never."""

    def refuse(_step: str) -> None:
        raise AgentError("its agent is too old")

    world.guests[TRIAL_PREFIX].on_step = refuse
    service = watching()
    said = service.wait_for("web2: 'a': could not be booted aside, next try in 60 minutes: its agent is too old")
    assert said.severity is Severity.WARNING
    time.sleep(0.1)
    assert sum("too old" in said.text for said in service.said) == 2


def test_one_whose_vm_is_busy_is_tried_when_it_is_not(watching, world):
    """Broken: a checkpoint that is found before its operation has ended, by a merge say, would be left alone for an hour."""
    vm = world.host.vms[0]
    with world.context.locked(vm, "checkpoint"):
        service = watching()
        service.wait_for("web2: 'a': was booted aside: proven")
        time.sleep(0.1)
    service.wait_for("web1: 'a': was booted aside: proven")
    assert len(service.said) == 2


def test_a_service_that_stops_leaves_no_copy(watching, world):
    """Broken: to stop the service would take as long as a guest's checks, or leave a copy that runs."""
    asked, ended = threading.Event(), threading.Event()
    end_copy = world.host.end_copy

    def long(_step: str) -> None:
        asked.set()
        ended.wait(20)
        raise AgentError("the connection was lost")

    def power_off(vm: Any, **_: Any) -> None:
        vm.live = None
        ended.set()

    world.guests[TRIAL_PREFIX].on_step = long
    start = world.host.start_copy

    def started(xml: str) -> None:
        start(xml)
        copy = world.host.vms[-1]
        copy.power_off = lambda **_: power_off(copy)

    world.host.start_copy = started
    service = watching()
    assert asked.wait(20)
    service.end()
    assert ended.is_set()
    assert not any("could not" in said.text for said in service.said)
    assert world.host.end_copy == end_copy
    nothing_of_a_copy(world)


def test_a_cancelled_verification_is_no_failure_of_the_checkpoint(world, monkeypatch):
    """Broken: a checkpoint would be called damaged because the service was stopped while its copy booted."""
    vm = world.vm()
    vm.xml = vm.xml.replace("<devices>", MACHINE)
    world.take(vm)
    world.host.comes_up = False
    context = replace(world.context, cancelled=lambda: True)
    with pytest.raises(CancelledError):
        proving.verify(context, proving.CheckpointReference("web1", "a"))
    assert world.tree(vm).checkpoints[0].proof is None
    nothing_of_a_copy(world)
