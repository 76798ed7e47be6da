"""Runs the steps of a window with real members, within the window's time.

This module does not log, write, import or retry: between the first hold and the last release, the guests' writes wait.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from quiesce.model.events import Emit, PhaseFinished, PhaseStarted
from quiesce.window.machine import Action, Answers, Batch, StepAnswer, WindowMember, WindowOutcome, WindowStep, window

ABORT_TIMEOUT_S = 5.0
"""Longest wait for the answer to an abort, in seconds. The guest's own deadline holds in any case."""


class WindowExpiredError(Exception):
    """The window's time ended before the step had an answer."""


class Participant(Protocol):
    """The interface of a member for the driver."""

    async def perform(self, step: WindowStep, timeout: float) -> Any:
        """Does the step and returns its value, or raises, within `timeout` seconds or soon after."""


@dataclass(frozen=True)
class WindowReport:
    outcome: WindowOutcome
    phases_us: Mapping[str, int]
    """How long each batch took on this host, in microseconds, by its action (and level)."""


async def drive(
    members: Sequence[WindowMember], participants: Mapping[str, Participant], window_s: float, emit: Emit
) -> WindowReport:
    """Runs one window of at most `window_s` seconds.

    Whatever happens, cancellation included: when this returns or raises, every member that may hold or be frozen has been told
    to release or to abort. A member that could not be told releases by itself at its own deadline.
    """
    machine = window(members)
    phases: dict[str, int] = {}
    deadline = time.monotonic() + window_s
    touched: set[str] = set()
    try:
        batch = next(machine)
        while True:
            touched.update(step.member for step in batch if step.action in (Action.HOLD, Action.FREEZE))
            label = _label(batch[0])
            emit(PhaseStarted(label))
            started = time.monotonic()
            answers = await _run(batch, participants, deadline)
            seconds = time.monotonic() - started
            phases[label] = phases.get(label, 0) + round(seconds * 1e6)
            emit(PhaseFinished(label, seconds))
            batch = machine.send(answers)
    except StopIteration as finished:
        return WindowReport(finished.value, phases)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await _run(tuple(WindowStep(Action.ABORT, name) for name in sorted(touched)), participants, deadline)
        raise


async def _run(batch: Batch, participants: Mapping[str, Participant], deadline: float) -> Answers:
    answers: dict[WindowStep, StepAnswer] = {}

    async def one(step: WindowStep) -> None:
        left = ABORT_TIMEOUT_S if step.action is Action.ABORT else deadline - time.monotonic()
        if left <= 0:
            answers[step] = StepAnswer(failure=WindowExpiredError(f"the window ended before the step {step.action.value}"))
            return
        try:
            answers[step] = StepAnswer(await participants[step.member].perform(step, left))
        except Exception as error:  # noqa: BLE001 - a failure is an answer; the machine decides
            answers[step] = StepAnswer(failure=error)

    async with anyio.create_task_group() as group:
        for step in batch:
            group.start_soon(one, step)
    return answers


def _label(step: WindowStep) -> str:
    return f"{step.action.value} {step.level.value}" if step.level else step.action.value
