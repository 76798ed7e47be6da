"""The order of a freeze window, as a generator of steps. It does nothing itself and knows no clock.

    hold front ends -> hold back ends -> hold systems -> freeze -> switch -> thaw -> release in reverse

Members that freeze early do so before anybody is held: VSS in a Windows guest prepares for up to a minute within its freeze,
and nobody's writes may wait for that.

Each batch is run at once on all its members and is a barrier: the next comes when every step of it has an answer. For any
answers whatsoever:

  * no member is switched before every member is frozen, and none is thawed or released before every switch returned;
  * a failed step ends the way forward: every member that was touched is then aborted, which thaws and releases it;
  * a member that was touched is, at the end, released at every level it held, or aborted.

tests/model/test_window.py checks exactly this over random answers.
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
    """What came of a step: a value, or what went wrong."""

    value: Any = None
    failure: Exception | None = None


@dataclass(frozen=True)
class WindowMember:
    """A VM in the window. `quiesced` false: it has no agent to ask, so it is only switched. `early`: it freezes first."""

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
    """What stopped the way forward, the first in member order; None if the window was completed."""
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
    """The window over `members`: yields batches, is sent their answers, returns the outcome."""
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
