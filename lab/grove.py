"""Verbs killed at every write to their journals, and at random moments, on trees of real disks; what was lost is counted."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import libvirt

from lab import victim
from lab.bare import directory
from lab.forest import Disks, Faults, Forest, faults, read
from lab.machine import left_behind
from quiesce.catalog import exported
from quiesce.disks.shortening_plan import LONG
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Kind
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.restore import restore

TIMEOUT_S = 120


@dataclass
class Tally:
    steps: int = 0
    """Moments at which a verb was killed by its own journal."""
    kills: int = 0
    lost: int = 0
    orphans: int = 0
    unbootable: int = 0
    frozen_over_deadline: int = 0
    notes: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What the campaign itself left on the host."""

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def json(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}

    def good(self) -> bool:
        return not (self.lost or self.orphans or self.unbootable or self.frozen_over_deadline or self.left)


@dataclass(frozen=True)
class State:
    """What there ought to be."""

    nodes: dict[str, Disks]
    head: Disks


@dataclass(frozen=True)
class Verb:
    name: str
    arguments: list[str]
    """{vm} and {dir} stand for the VM's name and its directory."""
    after: Callable[[State], State]
    """The state it makes of the one before. Names of safety checkpoints are written as `safety`."""
    running: tuple[bool, ...] = (True, False)
    awake: bool = False
    """Needs a VM that is not paused."""
    thinned: bool = False
    """Begins with a tree in which two checkpoints are deleted already."""
    long: bool = False
    """Begins with a backing chain of vda that one more checkpoint makes too long."""


class Grove:
    """A tree with three branches above its middle: root - middle - (here - now, left, right)."""

    def __init__(self, path: Path) -> None:
        self.forest = Forest(path)
        self._output = Path(tempfile.mkdtemp()) / "output"
        self.catalog = str(path / "catalog" / "catalog.db")
        self.full, self.thin = self._grow()

    def _grow(self) -> tuple[State, State]:
        forest, nodes, writes = self.forest, {}, iter(range(1, 99))
        head: Disks = {"vda": b"", "vdb": b""}

        def write() -> None:
            number = next(writes)
            for target, at in (("vda", number % 7), ("vdb", number % 5)):
                forest.write(target, at * 100 * 1024 // 4096 * 4096, 96 * 1024, number)
                head[target] = read(forest.sources()[target])

        def create(name: str) -> None:
            checkpoint(forest.context, forest.name, name=name, required=Consistency.CRASH)
            nodes[name] = dict(head)
            write()

        def back(name: str) -> None:
            restore(forest.context, CheckpointReference(forest.name, name), discard_current=True)
            head.update(nodes[name])
            write()

        write()
        for name in ("root", "middle", "here"):
            create(name)
        for name in ("left", "right"):
            back("middle")
            create(name)
        back("here")
        full = State(dict(nodes), dict(head))
        forest.save("full")
        delete(forest.context, [CheckpointReference(forest.name, name) for name in ("middle", "left")])
        thin = State({name: nodes[name] for name in ("root", "here", "right")}, dict(head))
        forest.save("thin")
        return full, thin

    @functools.cached_property
    def long(self) -> State:
        forest, nodes, head = self.forest, dict(self.full.nodes), dict(self.full.head)
        forest.put_back("full")
        for number in itertools.count(100):
            found = forest.survey()
            if len(found.chains.chain(found.head["vda"])) == LONG - 1:
                break
            name = f"long{number}"
            checkpoint(forest.context, forest.name, name=name, required=Consistency.CRASH, exclude=("vdb",))
            nodes[name] = {"vda": head["vda"]}
            forest.write("vda", number % 7 * 128 * 1024, 64 * 1024, number)
            head["vda"] = read(forest.sources()["vda"])
        forest.save("long")
        return State(nodes, head)

    def put_back(self, verb: Verb, *, running: bool) -> State:
        self._remove_copy()
        name = "thin" if verb.thinned else "long" if verb.long else "full"
        state: State = getattr(self, name)
        self.forest.put_back(name)
        if running:
            self.forest.start(paused=not verb.awake)
        return state

    def run(self, verb: Verb, kill_at: int = victim.NEVER, kill_after_s: float | None = None) -> tuple[bool, float]:
        """(whether it was killed, seconds it took). Raises SystemExit if it failed of itself."""
        words = [word.format(vm=self.forest.name, dir=self.forest.bare.directory) for word in verb.arguments]
        started = time.monotonic()
        process = victim.start(words, self.catalog, self._output, kill_at)
        if kill_after_s is not None:
            process.join(kill_after_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGKILL)
        process.join(TIMEOUT_S)
        took = time.monotonic() - started
        if process.exitcode is None:
            process.kill()
            raise SystemExit(f"{verb.name} did not end within {TIMEOUT_S} s")
        if process.exitcode not in (0, -signal.SIGKILL):
            raise SystemExit(f"{verb.name} ended with {process.exitcode}:\n{self._output.read_text()}")
        return process.exitcode != 0, took

    def judge(self, tally: Tally, verb: Verb, before: State, what: str) -> None:
        """Has the doctor mend it, then counts what is wrong."""
        forest = self.forest
        forest.reopen()
        doctor(forest.context, None, repair=True)
        again = [item for item in doctor(forest.context, None, repair=False) if item.found]
        names = {node.name: node.kind for node in forest.tree().checkpoints}
        safety = next((name for name, kind in names.items() if kind is Kind.SAFETY), "safety")
        after = verb.after(before)
        after = State({safety if name == "safety" else name: disks for name, disks in after.nodes.items()}, after.head)
        wrong = min((faults(forest, state.nodes, state.head) for state in (before, after)), key=_gravity)
        tally.lost += len(wrong.lost)
        tally.orphans += len(wrong.orphans) + self._stray_export() + len(again)
        if wrong or again:
            tally.notes.append(f"{verb.name}, {what}: {wrong} {again}")
        try:
            if not forest.running:
                forest.start()
        except libvirt.libvirtError as error:
            tally.unbootable += 1
            tally.notes.append(f"{verb.name}, {what}: {error}")

    def _stray_export(self) -> int:
        """Files of an export that has no manifest, or of an import that has no VM."""
        stray = 0
        for name, whole in (("export", exported.NAME), ("copy", None)):
            files = list((self.forest.bare.directory / name).glob("*"))
            done = (self.forest.bare.directory / name / whole).exists() if whole else self._copy_defined()
            stray += 0 if done else len(files)
        return stray

    def _copy_defined(self) -> bool:
        return f"{self.forest.name}-copy" in [domain.name() for domain in self.forest.bare.connection.listAllDomains()]

    def _remove_copy(self) -> None:
        if self._copy_defined():
            self.forest.bare.connection.lookupByName(f"{self.forest.name}-copy").undefine()

    def remove(self) -> None:
        self._remove_copy()
        self.forest.remove()
        shutil.rmtree(self._output.parent)


def _gravity(wrong: Faults) -> int:
    return len(wrong.lost) * 1000 + len(wrong.orphans)


def _without(*names: str) -> Callable[[State], State]:
    return lambda state: State({name: disks for name, disks in state.nodes.items() if name not in names}, state.head)


def _restored(name: str, *, safety: bool) -> Callable[[State], State]:
    return lambda state: State(state.nodes | ({"safety": state.head} if safety else {}), state.nodes[name])


def _same(state: State) -> State:
    return state


VERBS = (
    Verb(
        "create",
        ["checkpoint", "{vm}", "--name", "new", "--require", "crash"],
        lambda state: State(state.nodes | {"new": state.head}, state.head),
        running=(True,),
    ),
    Verb(
        "create standard",
        ["checkpoint", "{vm}", "--name", "new", "--type", "standard"],
        lambda state: State(state.nodes | {"new": state.head}, state.head),
        running=(True,),
        awake=True,
    ),
    Verb(
        "create off",
        ["checkpoint", "{vm}", "--name", "new", "--require", "crash"],
        lambda state: State(state.nodes | {"new": state.head}, state.head),
        running=(False,),
    ),
    Verb(
        "create on a long chain",
        ["checkpoint", "{vm}", "--name", "new", "--require", "crash", "--exclude", "vdb"],
        lambda state: State(state.nodes | {"new": {"vda": state.head["vda"]}}, state.head),
        long=True,
    ),
    Verb("restore", ["restore", "{vm}@left"], _restored("left", safety=True)),
    Verb(
        "restore and discard",
        ["restore", "{vm}@left", "--discard-current"],
        _restored("left", safety=False),
        running=(False,),
    ),
    Verb("delete the root", ["delete", "{vm}@root"], _without("root")),
    Verb("delete the middle", ["delete", "{vm}@middle"], _without("middle"), running=(True,)),
    Verb("delete where the VM stands", ["delete", "{vm}@here"], _without("here")),
    Verb("delete a leaf", ["delete", "{vm}@left"], _without("left"), running=(False,)),
    Verb("merge", ["delete", "{vm}@right"], _without("right"), thinned=True),
    Verb("delete a subtree", ["delete", "{vm}@middle", "--subtree"], _without("middle", "here", "left", "right")),
    Verb("export", ["export", "{vm}@right", "{dir}/export"], _same, running=(True,)),
)
IMPORT = Verb("import", ["import", "{dir}/export", "--name", "{vm}-copy", "--to", "{dir}/copy"], _same, running=(False,))
CAMPAIGNS = {verb.name: verb for verb in (*VERBS, IMPORT)}


def every_step(grove: Grove, verb: Verb, tally: Tally, narrate: Callable[[str], None], *, quick: bool = False) -> None:
    for running in verb.running[: 1 if quick else None]:
        step, killed = 0, True
        while killed:
            before = _prepare(grove, verb, running=running)
            killed, _ = grove.run(verb, kill_at=step)
            tally.kills += killed
            tally.steps += killed
            grove.judge(tally, verb, before, f"{'running' if running else 'off'}, step {step}")
            step += killed
        narrate(f"{verb.name}, VM {'running' if running else 'off'}: killed at {step} steps")


def at_random(grove: Grove, verb: Verb, times: int, tally: Tally, narrate: Callable[[str], None], dice: random.Random) -> None:
    for running in verb.running:
        _prepare(grove, verb, running=running)
        _, took = grove.run(verb)
        for _ in range(times):
            before = _prepare(grove, verb, running=running)
            moment = dice.uniform(0, took)
            killed, _ = grove.run(verb, kill_after_s=moment)
            tally.kills += killed
            grove.judge(tally, verb, before, f"{'running' if running else 'off'}, killed after {moment:.3f} s")
    narrate(f"{verb.name}: killed at {times * len(verb.running)} random moments")


def _prepare(grove: Grove, verb: Verb, *, running: bool) -> State:
    before = grove.put_back(verb, running=running)
    if verb is IMPORT:
        grove.run(next(item for item in VERBS if item.name == "export"))
    return before


def campaign(name: str, quick: bool, seed: int) -> tuple[Tally, list[str]]:
    """One verb on a tree of its own. Returns what came of it, and what there is to tell."""
    tally, said = Tally(), list[str]()
    with directory() as path:
        grove = Grove(path)
        try:
            every_step(grove, CAMPAIGNS[name], tally, said.append, quick=quick)
            dice = random.Random(f"{seed} {name}")  # noqa: S311 - no secret
            at_random(grove, CAMPAIGNS[name], 1 if quick else 20, tally, said.append, dice)
        finally:
            grove.remove()
    tally.left = left_behind()
    return tally, said
