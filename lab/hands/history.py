"""One history: steps on one world, each judged; and the end: all that stands in the way is taken away, and all must be well."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import libvirt

from lab.hands import files, host, ours, virsh
from lab.hands.model import Asked, Fault, Model, after_hand, after_verb, unnamed, whole
from lab.hands.world import CATALOG, Hand, NotNowError, RefusedByToolError, World
from quiesce.model.errors import QuiesceError

REFUSED = (RefusedByToolError, QuiesceError, OSError, libvirt.libvirtError, subprocess.SubprocessError, AssertionError)
"""A hand could not do what it was to do."""
HANDS = {hand.name: hand for hand in (*virsh.HANDS, *files.HANDS, *host.HANDS)}
LONGEST_S = 1.2
"""At most so long after the begin of a verb a hand acts, or the verb is killed."""


@dataclass(frozen=True)
class Step:
    hand: str | None
    verb: str | None
    """With a hand: the hand acts while the verb runs."""
    killed: bool
    """The verb is killed, then the hand acts, then doctor repairs."""
    die: int

    @classmethod
    def at_random(cls, dice: Random) -> Step:
        die, what = dice.getrandbits(32), dice.random()
        if what < 0.6:
            return cls(dice.choice(list(HANDS)), None, killed=False, die=die)
        verb = dice.choice(list(ours.VERBS))
        if what < 0.85:
            return cls(None, verb, killed=False, die=die)
        gentle = [hand.name for hand in HANDS.values() if hand.gentle]
        return cls(dice.choice(gentle), verb, killed=what > 0.95, die=die)

    def __str__(self) -> str:
        how = ", killed, then " if self.killed else ", and meanwhile "
        return how.join(part for part in (f"our {self.verb}" if self.verb else None, self.hand) if part)


class History:
    """`told`: what was done, a line each."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told: list[str] = []
        self.hands = 0
        self.verbs = 0
        self._pending: Asked | None = None
        """Of a verb that was killed, or failed, and that the journal still has."""
        world.begin()

    def do(self, step: Step) -> tuple[Fault, ...]:
        """The faults that came of it. A step that has nothing to act on does nothing."""
        dice = Random(step.die)  # noqa: S311 - no secret
        began = time.monotonic()
        try:
            faults = self._verb(step, dice) if step.verb else self._hand(HANDS[str(step.hand)], dice)
        except NotNowError:
            return ()
        self.told[-1] += f" [{time.monotonic() - began:.1f} s]"
        return faults + self._crashes()

    def _crashes(self) -> tuple[Fault, ...]:
        found, self.world.crashes = self.world.crashes, []
        return tuple(Fault("tracebacks", text) for text in found)

    def _act(self, hand: Hand, dice: Random) -> bool:
        """Whether it did what it was to do."""
        try:
            said = hand.act(self.world, dice)
        except REFUSED as error:
            self.told.append(f"{hand.name}: refused, {str(error)[:160]}")
            return False
        self.told.append(said)
        return True

    def _hand(self, hand: Hand, dice: Random) -> tuple[Fault, ...]:
        done = self._act(hand, dice)
        self.hands += done
        self.world.seen = self.world.look(self.world.model)
        self.world.model, faults = after_hand(self.world.model, self.world.seen, wrote=hand.wrote and done)
        return faults if self.world.trusted else ()

    def _verb(self, step: Step, dice: Random) -> tuple[Fault, ...]:
        ask = ours.VERBS[str(step.verb)](self.world, dice)
        hand = HANDS[step.hand] if step.hand else None
        moment = dice.uniform(0, LONGEST_S)

        def meanwhile() -> None:
            assert hand is not None
            if not step.killed:
                time.sleep(moment)
            with contextlib.suppress(NotNowError):
                self.hands += self._act(hand, dice)

        return self.ask(ask, meanwhile if hand else None, moment if step.killed else None)

    def ask(
        self, ask: ours.Ask, meanwhile: Callable[[], None] | None = None, kill_after_s: float | None = None
    ) -> tuple[Fault, ...]:
        world, asked = self.world, ask.asked
        code, said = world.quiesce(*ask.words, meanwhile=meanwhile, kill_after_s=kill_after_s, clock=ask.clock)
        words = " ".join(ask.words)
        self.told.append(f"quiesce {words} -> {code}: {said.strip()[-300:]}")
        self.verbs += 1
        faults = list(self._of_the_end(words, code, said, killed=kill_after_s is not None))
        faults += ask.finish(world, world.model, code)
        if kill_after_s is not None:
            more, said = world.quiesce("doctor", world.name_or_uuid(), "--repair")
            self.told.append(f"quiesce doctor --repair -> {more}: {said.strip()[-300:]}")
            faults += self._of_the_end("doctor --repair", more, said, killed=False)
            asked = asked.and_also(Asked(mends=True))
        elif meanwhile:
            asked = asked.and_also(Asked())
        if self._pending:
            asked = asked.and_also(self._pending)
        before = self.world.seen
        self.world.seen = world.look(world.model)
        known = world.model
        world.model, wrong = after_verb(known, before, self.world.seen, asked)
        if world.trusted:
            faults += wrong
            if not asked.crowded:
                faults += _untrue(known, self, ask, code, said)
        self._pending = asked if self.world.seen.unfinished or self.world.seen.shown is None else None
        return tuple(faults)

    def _of_the_end(self, words: str, code: int | None, said: str, *, killed: bool) -> Iterator[Fault]:
        if code is None:
            yield Fault("hung", f"quiesce {words} did not end")
        elif "Traceback" in said or (code < 0 and not killed):
            yield Fault("tracebacks", f"quiesce {words} ended with {code}: {said[-1500:]}")

    def end(self, dice: Random) -> tuple[Fault, ...]:
        """Takes away what stands in the way; then doctor must mend the rest, or say what is wrong; and the VM starts."""
        faults = list(self._clear())
        try:
            faults += self._settle(dice)
            faults += self._start("after doctor --repair")
            with contextlib.suppress(NotNowError):
                faults += self._restore_one(dice)
        except NotNowError:
            said = self.world.complaints()
            if ".qcow2" not in said.text:  # it cannot tell which image is whose, and says so
                faults.append(Fault("unbootable", f"libvirt has no VM after doctor --repair; doctor: {said.text}"))
        return tuple(faults) + self._crashes()

    def _clear(self) -> tuple[Fault, ...]:
        world = self.world
        for undo in list(world.undo.values()):
            with contextlib.suppress(*REFUSED):
                undo()
        world.undo.clear()
        for path, aside in reversed(world.moved):
            if aside.exists() and not path.exists():
                aside.rename(path)
        world.moved.clear()
        if running := world.domain():
            with contextlib.suppress(libvirt.libvirtError):
                running.destroy()
        if domain := world.domain():  # a transient one is gone
            for snapshot in domain.listAllSnapshots():
                with contextlib.suppress(libvirt.libvirtError):
                    snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
            if domain.hasManagedSaveImage():
                domain.managedSaveRemove()
        self.told.append("all that stands in the way is taken away; the VM is off")
        self.world.seen = world.look(world.model)
        world.model, faults = after_hand(world.model, self.world.seen, wrote=False)
        return faults if world.trusted else ()

    def _settle(self, dice: Random) -> list[Fault]:
        world, faults = self.world, list[Fault]()
        if not world.trusted:
            before = self.world.seen
            words = ("catalog", "rebuild", "--directory", str(world.directory))
            code, said = world.quiesce(*words)
            if code:  # as its hint says
                for path in (world.directory / CATALOG).glob("catalog.db*"):
                    path.unlink()
                code, said = world.quiesce(*words)
            self.told.append(f"quiesce catalog rebuild -> {code}: {said.strip()[-300:]}")
            self.world.seen = world.look(world.model)
            world.trusted = True
            faults += self._not_rebuilt()
            world.model, _ = after_verb(world.model, before, self.world.seen, Asked(mends=True, crowded=True))
        faults += self.ask(ours.repair(world, dice))
        world.reopen()
        again = world.complaints(repair=True)
        self.told.append(f"a second repair: {', '.join(again.wrong) or 'nothing is wrong'}")
        world.seen = world.look(world.model)
        faults += unnamed(world.model, world.seen, mended=True)
        if again.mended:
            faults.append(Fault("untrue", f"a second repair does more: {again.mended}"))
        return faults

    def _not_rebuilt(self) -> Iterator[Fault]:
        model = self.world.model
        for id in sorted(model.wanted - (self.world.seen.shown or {}).keys()):
            manifest = self.world.directory / f"quiesce-{id}.json"
            if self.world.seen.shown is not None and manifest.exists() and whole(model.checkpoints[id], self.world.seen):
                yield Fault("lost", f"checkpoint {id} is there with its manifest, and was not recorded again")

    def _start(self, when: str) -> list[Fault]:
        domain = self.world.domain()
        if domain is None:
            raise NotNowError
        try:
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        except libvirt.libvirtError as error:
            said = self.world.complaints().wrong
            self.told.append(f"{when} the VM does not start: {error}; doctor: {', '.join(said)}")
            damaged = self.world.seen.vm is None or None in self.world.seen.vm.values()
            return [] if damaged and said else [Fault("unbootable", f"{when} the VM does not start: {error}")]
        domain.destroy()
        return []

    def _restore_one(self, dice: Random) -> list[Fault]:
        node = dice.choice(self.world.checkpoints())
        asked = ours.restores(self.world, node)
        honest = self.world.seen.shown is None or node.id not in self.world.seen.shown or self.world.seen.shown[node.id].honest
        faults = list(self.ask(ours.Ask(("restore", f"{self.world.name}@{node.name}"), asked)))
        restored = self.world.seen.vm in asked.restores
        if not honest and not restored and not self.world.complaints().wrong:
            faults.append(Fault("untrue", f"{node.name} cannot be restored, although nothing says so"))
        return faults + (self._start("after a restore") if restored else [])


def _untrue(known: Model, history: History, ask: ours.Ask, code: int | None, said: str) -> Iterator[Fault]:
    """Verbs that say that they did, or did not, what they did not, or did. `known`: before the verb."""
    seen, asked, words = history.world.seen, ask.asked, " ".join(ask.words)
    if code == 0 and asked.restores and not asked.accepts and seen.vm not in asked.restores:
        yield Fault("silent", f"{words} ended with 0, and the VM has another content")
    shown = seen.shown or {}
    if code and asked.deletes and "deleted" not in said and not asked.deletes & known.wanted <= shown.keys():
        yield Fault("untrue", f"{words} ended with {code}, and the checkpoint is gone")
    if code == 0 and asked.deletes & shown.keys():
        yield Fault("untrue", f"{words} ended with 0, and the checkpoint is there")
