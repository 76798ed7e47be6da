"""window/driver.py, with members that live in this process."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import anyio
import pytest

from quiesce.model.events import Event, PhaseFinished, PhaseStarted
from quiesce.model.grades import Level
from quiesce.window.driver import ABORT_TIMEOUT_S, WindowExpiredError, WindowReport, drive
from quiesce.window.machine import Action, WindowMember, WindowStep

Behaviour = Callable[[WindowStep], float]


class Fake:
    """A member that takes as long for each step as it is told (seconds; a negative time fails) and keeps a diary."""

    def __init__(self, diary: list[tuple[str, WindowStep]], behaviour: Behaviour = lambda _: 0.0) -> None:
        self.diary = diary
        self.behaviour = behaviour
        self.timeouts: dict[WindowStep, float] = {}

    async def perform(self, step: WindowStep, timeout: float) -> str:
        self.timeouts[step] = timeout
        self.diary.append(("start", step))
        seconds = self.behaviour(step)
        await anyio.sleep(abs(seconds))
        if seconds < 0:
            raise RuntimeError(f"{step.member} cannot {step.action.value}")
        self.diary.append(("end", step))
        return f"{step.action.value} {step.member}"


A, B = WindowMember("a", frozenset({Level.FRONT_END})), WindowMember("b", frozenset({Level.BACK_END}))


def go(
    behaviour: Behaviour = lambda _: 0.0,
    *,
    members: tuple[WindowMember, ...] = (A, B),
    window_s: float = 5.0,
    cancel_s: float | None = None,
    emit: Callable[[Event], None] = lambda _: None,
) -> tuple[WindowReport | None, list[tuple[str, WindowStep]], dict[str, Fake]]:
    diary: list[tuple[str, WindowStep]] = []
    fakes = {member.name: Fake(diary, behaviour) for member in members}

    async def main() -> WindowReport | None:
        with anyio.move_on_after(cancel_s):
            return await drive(members, fakes, window_s, emit)
        return None

    return anyio.run(main), diary, fakes


def started(diary: list[tuple[str, WindowStep]]) -> list[str]:
    return [f"{step.action.value} {step.member}" for what, step in diary if what == "start"]


def ended(diary: list[tuple[str, WindowStep]], action: Action) -> set[str]:
    return {step.member for what, step in diary if what == "end" and step.action is action}


def test_every_batch_is_a_barrier():
    """Broken: one VM would be switched while another still writes."""
    slow = {"a": 0.02, "b": 0.0}
    report, diary, _ = go(lambda step: slow[step.member])
    order = [Action.HOLD, Action.FREEZE, Action.SWITCH, Action.THAW, Action.RELEASE]
    for before, after in itertools.pairwise(order):
        last_end = max(index for index, (what, step) in enumerate(diary) if what == "end" and step.action is before)
        first_start = min(index for index, (what, step) in enumerate(diary) if what == "start" and step.action is after)
        assert last_end < first_start
    assert report.outcome.failure is None
    assert report.outcome.value(Action.SWITCH, "b") == "switch b"


def test_members_of_a_batch_go_at_once():
    """Broken: the stall of a group would be the sum of its members', not the longest."""
    _, diary, _ = go(lambda _: 0.01)
    switches = [what for what, step in diary if step.action is Action.SWITCH]
    assert switches == ["start", "start", "end", "end"]


def test_each_step_is_given_what_is_left_of_the_window():
    """Broken: a step could take longer than the guest's own deadline allows."""
    began = time.monotonic()
    report, _, fakes = go(lambda _: 0.01, window_s=5.0)
    took = time.monotonic() - began
    times = [
        fakes["b"].timeouts[step]
        for step in (
            WindowStep(Action.HOLD, "b", Level.BACK_END),
            WindowStep(Action.FREEZE, "b"),
            WindowStep(Action.SWITCH, "b"),
        )
    ]
    assert 5.0 >= times[0] > times[1] > times[2] >= 5.0 - took
    assert report.outcome.all_switched


@pytest.mark.parametrize("slow", [Action.HOLD, Action.FREEZE, Action.SWITCH])
def test_no_step_begins_after_the_window_and_everybody_is_told(slow):
    """Broken: VMs would be frozen or switched after their guests have let go by themselves."""
    report, diary, fakes = go(lambda step: 0.1 if step.action is slow else 0.0, window_s=0.05)
    late = {Action.HOLD: Action.HOLD, Action.FREEZE: Action.SWITCH, Action.SWITCH: Action.THAW}[slow]
    assert isinstance(report.outcome.failure, WindowExpiredError)
    assert report.outcome.failed_step.action is late
    if slow is not Action.HOLD:
        assert f"{late.value} a" not in started(diary)
    assert ended(diary, Action.ABORT) == {"a", "b"}
    assert {fakes[name].timeouts[WindowStep(Action.ABORT, name)] for name in "ab"} == {ABORT_TIMEOUT_S}


def test_a_failure_aborts_everybody_touched_and_is_reported():
    """Broken: the others of a group would stay frozen because one of them failed."""
    report, diary, _ = go(lambda step: -0.001 if step == WindowStep(Action.FREEZE, "b") else 0.0)
    assert str(report.outcome.failure) == "b cannot freeze"
    assert ended(diary, Action.ABORT) == {"a", "b"}
    assert "switch a" not in started(diary)


def test_one_member_that_cannot_be_aborted_does_not_keep_the_other():
    """Broken: one dead guest would leave the rest of its group standing."""
    report, diary, _ = go(lambda step: -0.001 if step.member == "a" and step.action in (Action.SWITCH, Action.ABORT) else 0.0)
    assert ended(diary, Action.ABORT) == {"b"}
    assert report.outcome.failed_step == WindowStep(Action.SWITCH, "a")


@pytest.mark.parametrize("stuck", [Action.FREEZE, Action.SWITCH, Action.THAW])
def test_cancelled_it_still_lets_everybody_go(stuck):
    """Broken: Ctrl-C in the window would leave guests frozen until their deadline."""
    report, diary, _ = go(
        lambda step: 60.0 if step.action is stuck else 0.02 if step.action is Action.ABORT else 0.0, cancel_s=0.1
    )
    assert report is None
    assert ended(diary, Action.ABORT) == {"a", "b"}


def test_cancelled_early_only_those_touched_are_told():
    """Broken: a guest that was never asked to hold would be told to abort, or one that was would not."""
    _, diary, _ = go(lambda step: 60.0 if step.action is Action.HOLD else 0.0, cancel_s=0.05)
    assert ended(diary, Action.ABORT) == {"a"}


def test_a_listener_that_fails_does_not_leave_guests_frozen():
    """Broken: a mistake in drawing progress would cost the guests their applications' service."""

    def emit(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "switch":
            raise ValueError("no terminal")

    diary: list[tuple[str, WindowStep]] = []
    fakes = {"a": Fake(diary), "b": Fake(diary)}
    with pytest.raises(ValueError, match="no terminal"):
        anyio.run(drive, (A, B), fakes, 5.0, emit)
    assert ended(diary, Action.ABORT) == {"a", "b"}


def test_phases_are_timed_and_told_as_they_pass():
    """Broken: the printed stall would not say where the time went."""
    events: list[Event] = []
    begun = time.monotonic()
    report, _, _ = go(lambda step: 0.03 if step.action is Action.SWITCH else 0.0, emit=events.append)
    took_us = (time.monotonic() - begun) * 1e6
    labels = ["hold front-end", "hold back-end", "freeze", "switch", "thaw", "release back-end", "release front-end"]
    assert list(report.phases_us) == labels
    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == labels
    assert [event.phase for event in events if isinstance(event, PhaseFinished)] == labels
    assert [type(event) for event in events] == [PhaseStarted, PhaseFinished] * len(labels)
    assert report.phases_us["switch"] >= 30_000
    assert sum(report.phases_us.values()) <= took_us


def test_a_vm_without_an_agent_is_only_switched():
    """Broken: `--require crash` would fail for want of an agent."""
    report, diary, _ = go(members=(WindowMember("a", quiesced=False),))
    assert started(diary) == ["switch a"]
    assert report.outcome.all_switched


def test_without_members_nothing_happens():
    """Broken: an empty group would raise instead of reporting that nothing was switched."""
    report, diary, _ = go(members=())
    assert diary == []
    assert not report.outcome.all_switched
