"""The order of a freeze window, as a generator of steps. It does nothing itself and knows no clock.

    hold front ends -> hold back ends -> hold systems -> freeze -> switch -> thaw -> release in reverse

Members that freeze early do so before any member holds: VSS in a Windows guest prepares for up to a minute within its freeze,
and the writes of other members must not wait for that.

A batch is a set of steps that run at the same time. The next batch begins when every step of the batch has an answer. Whatever
the answers are:

  * no member is switched before every member is frozen, and none is thawed or released before every switch returned;
  * after a failed step, every member that may hold or be frozen is aborted, which thaws and releases it;
  * at the end, such a member was released at every level that it held, or was aborted.

Example: members a and b. a freezes, b refuses to freeze: both are aborted, and no disk switches.

tests/model/test_window.py checks exactly this with random answers.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from quiesce.model.grades import LEVELS, Level


class Action(Enum):
    HOLD = "hold"
    FREEZE = "freeze"
    SWITCH = "switch"
    THAW = "thaw"
    RELEASE = "release"
    ABORT = "abort"


@dataclass(frozen=True)
class WindowStep:
    action: Action
    member: str
    level: Level | None = None


@dataclass(frozen=True)
class StepAnswer:
    """The result of a step: a value, or a failure."""

    value: Any = None
    failure: Exception | None = None


@dataclass(frozen=True)
class WindowMember:
    """A VM in the window. `levels`: the levels of its writers. `quiesced` false: no guest answers, so the VM is only switched.
    `early`: the VM freezes before any member holds."""

    name: str
    levels: frozenset[Level] = frozenset()
    quiesced: bool = True
    early: bool = False


Batch = tuple[WindowStep, ...]
Answers = Mapping[WindowStep, StepAnswer]


@dataclass(frozen=True)
class WindowOutcome:
    answers: Mapping[WindowStep, StepAnswer]
    failure: Exception | None
    """The failure that stopped the window: of the failed steps of the batch, the first in the order of the members. None if the
    window was completed."""
    failed_step: WindowStep | None

    def value(self, action: Action, member: str, level: Level | None = None) -> Any:
        answer = self.answers.get(WindowStep(action, member, level))
        return answer.value if answer else None

    @property
    def all_switched(self) -> bool:
        switches = [answer for step, answer in self.answers.items() if step.action is Action.SWITCH]
        return bool(switches) and all(answer.failure is None for answer in switches)


class _WayForwardEndedError(Exception):
    def __init__(self, step: WindowStep, failure: Exception) -> None:
        self.step = step
        self.failure = failure


def window(members: Sequence[WindowMember]) -> Generator[Batch, Answers, WindowOutcome]:
    """The window of `members`. Yields batches, receives the answers of each, and returns the outcome."""
    answers: dict[WindowStep, StepAnswer] = {}
    touched: list[str] = []

    def run(*steps: WindowStep) -> Generator[Batch, Answers, None]:
        if not steps:
            return
        touched.extend(step.member for step in steps if step.action in (Action.HOLD, Action.FREEZE))
        answers.update((yield steps))
        for step in steps:
            failure = answers[step].failure
            if failure is not None:
                raise _WayForwardEndedError(step, failure)

    quiesced = [member for member in members if member.quiesced]
    try:
        yield from run(*(WindowStep(Action.FREEZE, member.name) for member in quiesced if member.early))
        for level in LEVELS:
            yield from run(*(WindowStep(Action.HOLD, member.name, level) for member in quiesced if level in member.levels))
        yield from run(*(WindowStep(Action.FREEZE, member.name) for member in quiesced if not member.early))
        yield from run(*(WindowStep(Action.SWITCH, member.name) for member in members))
        yield from run(*(WindowStep(Action.THAW, member.name) for member in quiesced))
        for level in reversed(LEVELS):
            yield from run(*(WindowStep(Action.RELEASE, member.name, level) for member in quiesced if level in member.levels))
    except _WayForwardEndedError as ended:
        aborts = tuple(WindowStep(Action.ABORT, name) for name in dict.fromkeys(touched))
        if aborts:
            answers.update((yield aborts))
        return WindowOutcome(answers, ended.failure, ended.step)
    return WindowOutcome(answers, None, None)
