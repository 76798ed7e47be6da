"""Histories at random until so many hands have acted; the shortest history that shows each fault; and the count of all faults.

Runs with a libvirt and a host name of its own (`script/chaos --hands N`), because hands end libvirt and rename the host."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from lab import apart, cache
from lab.bare import directory
from lab.hands.history import History, Step
from lab.hands.model import Fault
from lab.hands.world import World
from lab.machine import left_behind

COUNTED = ("silent", "lost", "unbootable", "untrue", "tracebacks", "hung")
STEPS = 10
"""Of a history."""
SHRINK_S = 240
"""Longest time to look for a shorter history, for each fault."""
ROOM = "400m"


@dataclass
class Outcome:
    hands: int = 0
    verbs: int = 0
    histories: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    acted: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def json(self) -> dict[str, int]:
        return {
            "hands": self.hands,
            "verbs": self.verbs,
            "histories": self.histories,
            "kinds": len(self.acted),
            **{kind: self.faults[kind] for kind in COUNTED},
        }


def play(world: World, steps: Sequence[Step], dice: Random) -> tuple[History, list[Step], tuple[Fault, ...]]:
    """Plays the steps until one shows a fault, or to the end. Returns the steps that were done, too."""
    history, done = History(world), list[Step]()
    for step in steps:
        before = len(history.told)
        faults = history.do(step)
        if len(history.told) > before:
            done.append(step)
        if faults:
            return history, done, faults
    return history, done, history.end(dice)


def shortest(world: World, steps: list[Step], kind: str, die: str) -> tuple[list[Step], History, tuple[Fault, ...]] | None:
    """Leaves out one step after the other as long as a fault of this kind is still shown. None: it is not shown again."""
    deadline = time.monotonic() + SHRINK_S
    best = None

    def shows(some: list[Step]) -> bool:
        nonlocal best
        history, done, faults = play(world, some, Random(die))  # noqa: S311 - no secret
        if any(fault.kind == kind for fault in faults):
            best = done, history, faults
            return True
        return False

    if not shows(steps):
        return None
    place = 0
    while place < len(steps) and time.monotonic() < deadline:
        fewer = steps[:place] + steps[place + 1 :]
        if shows(fewer):
            steps = fewer
        else:
            place += 1
    return best


def run(hands: int, seed: int, narrate: Callable[[str], None], *, shrink: bool = True, seconds: float | None = None) -> Outcome:
    outcome, deadline = Outcome(), time.monotonic() + (seconds or 10**9)
    with directory() as path:
        world = World(path)
        try:
            while outcome.hands < hands and time.monotonic() < deadline:
                _one(world, outcome, f"{seed} {outcome.histories}", narrate, shrink=shrink)
        finally:
            world.remove()
    if left := left_behind():
        outcome.notes.append(f"left on this host: {left}")
    return outcome


def _one(world: World, outcome: Outcome, die: str, narrate: Callable[[str], None], *, shrink: bool) -> None:
    began = time.monotonic()
    dice = Random(die)  # noqa: S311 - no secret
    steps = [Step.at_random(dice) for _ in range(STEPS)]
    history, done, faults = play(world, steps, Random(die))  # noqa: S311
    outcome.hands += history.hands
    outcome.verbs += history.verbs
    outcome.histories += 1
    outcome.acted.update(step.hand for step in done if step.hand)
    outcome.faults.update(fault.kind for fault in faults)
    narrate(
        f"history {die}: {history.hands} hands, {history.verbs} verbs, {time.monotonic() - began:.0f} s, {len(faults)} faults"
    )
    if faults:
        found = shortest(world, done, faults[0].kind, die) if shrink else None
        lines = [f"history {die!r}:", *(f"  {fault.kind}: {fault.text}" for fault in faults)]
        if found:
            done, history, faults = found
            lines += ["  the shortest:", *(f"    {step}" for step in done)]
            lines += [f"  {fault.kind}: {fault.text}" for fault in faults]
        lines += ["  as it went:", *(f"    {line}" for line in history.told)]
        outcome.notes.append("\n".join(lines))
        narrate(outcome.notes[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/chaos --hands", description=__doc__)
    parser.add_argument("--hands", type=int, required=True, help="how many hands act")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, help="no new history after so many seconds")
    parser.add_argument("--no-shrink", action="store_true")
    arguments = parser.parse_args()
    machines = cache.root() / "machines"
    machines.mkdir(exist_ok=True)
    # A filesystem of its own, which can be full without harm, and which the kernel removes with this namespace.
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=0755", "tmpfs", machines], check=True)
    outcome = run(
        arguments.hands,
        arguments.seed,
        lambda text: print(text, file=sys.stderr, flush=True),
        shrink=not arguments.no_shrink,
        seconds=arguments.seconds,
    )
    print(json.dumps(outcome.json() | {"seed": arguments.seed}))
    sys.exit(1 if outcome.notes or outcome.faults else 0)


def command(*arguments: str) -> list[str]:
    """The campaign in namespaces of its own."""
    return ["unshare", "--uts", sys.executable, apart.__file__, sys.executable, "-m", "lab.hands.campaign", *arguments]


ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    main()
