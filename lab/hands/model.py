"""What each checkpoint and the VM must contain, whatever others do, and how a look at the disks differs from that. Pure.

The model does not foretell what a hand does to images: it says what must hold afterwards.

- A checkpoint that is shown has the content of its instant, or is *honest*: the tree says that an image of it was changed, or a
  restore of it is refused.
- What a verb of ours found on the disks of anything that is wanted, it leaves there, unless it was asked to remove it. Wanted
  are the checkpoints, and the newest state that the guest wrote, even if somebody gave the VM other disks since.
- If the VM does not have its newest data, doctor finds something; once that is mended, it names the images that have them.

Contents are digests, by disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Contents = Mapping[str, str | None]
"""Digest of what a guest reads, by disk. None: the image, or one below it, is gone or damaged."""
MISSING: Contents = {}


@dataclass(frozen=True)
class Shown:
    """A checkpoint as the tree shows it."""

    name: str
    contents: Contents
    honest: bool
    """Whether the tree says that an image of it was changed, or a restore is refused."""


@dataclass(frozen=True)
class Seen:
    """One look at the disks, by somebody who trusts no record."""

    shown: Mapping[str, Shown] | None
    """By id. None: the catalog or the VM cannot be read, and nothing is shown."""
    vm: Contents | None
    """None: libvirt does not have the VM."""
    there: frozenset[str] = frozenset()
    """The content of every image on the disks, whoever it belongs to."""
    named: frozenset[str] = frozenset()
    """The content of the images that doctor names."""
    warned: bool = False
    """Whether doctor finds anything. As long as it is asked to mend one thing, it need not have looked for the next."""
    told: frozenset[str] = frozenset()
    """Disks of the VM of which doctor says that an image in their chains was changed, or is gone."""
    unfinished: bool = False
    """An operation was killed, or runs: what it was doing is nobody's fault yet."""


@dataclass(frozen=True)
class Fault:
    kind: str
    """A field of the tally."""
    text: str


@dataclass(frozen=True)
class Asked:
    """What a verb of ours was asked to do."""

    deletes: frozenset[str] = frozenset()
    """Ids."""
    restores: tuple[Contents, ...] = ()
    """What the VM may have afterwards, instead of what it has."""
    discards: bool = False
    """What the VM has at present, by the user's own word."""
    mends: bool = False
    """It may put the VM's newest data back."""
    accepts: bool = False
    """A restore of what is there, whatever it is."""
    crowded: bool = False
    """Somebody else acted at the same time, or the verb was killed, so the VM may have other disks afterwards."""

    def and_also(self, other: Asked) -> Asked:
        """For a verb that comes after one that was killed, and finishes that one first."""
        return Asked(
            self.deletes | other.deletes,
            self.restores + other.restores,
            discards=self.discards or other.discards,
            mends=self.mends or other.mends,
            accepts=self.accepts or other.accepts,
            crowded=True,
        )


@dataclass(frozen=True)
class Model:
    checkpoints: Mapping[str, Contents]
    """By id. Every one that was ever taken."""
    wanted: frozenset[str]
    """Ids of those that nobody deleted, and that were not rightly given up."""
    vm: Contents | None
    newest: Contents
    """What the guest had when somebody last wrote to the VM's disks."""
    older: tuple[Contents, ...] = field(default=())
    """Such states that the VM did not have any more when it was written to again: on disks that somebody had taken away."""

    def kept(self) -> dict[str, set[str]]:
        """Every content that may not get lost: a name for it, by digest."""
        found: dict[str, set[str]] = {}
        for name, contents in (
            *((id, self.checkpoints[id]) for id in self.wanted),
            ("the VM's newest data", self.newest),
            *(("data of the VM on earlier disks", contents) for contents in self.older),
        ):
            for value in contents.values():
                if value:
                    found.setdefault(value, set()).add(name)
        return found


def after_hand(model: Model, seen: Seen, *, wrote: bool) -> tuple[Model, tuple[Fault, ...]]:
    """`wrote`: the hand was the guest, or an administrator who changed the VM's disks on purpose."""
    newest, older = model.newest, model.older
    if wrote and seen.vm is not None and None not in seen.vm.values():
        if not _same(model.vm, newest):
            older = (*older, newest)
        newest = {target: value for target, value in newest.items() if target not in seen.vm} | dict(seen.vm)
    model = replace(model, vm=seen.vm, newest=newest, older=older)
    return model, (*silent(model, seen), *unnamed(model, seen))


def after_verb(model: Model, before: Seen, seen: Seen, asked: Asked) -> tuple[Model, tuple[Fault, ...]]:
    faults: list[Fault] = []
    shown = seen.shown or {}
    new = {id: shown[id].contents if model.vm is None or asked.crowded else model.vm for id in shown.keys() - model.checkpoints}
    new = {id: {target: contents.get(target) for target in shown[id].contents} for id, contents in new.items()}
    right = {id for id, item in (before.shown or {}).items() if item.contents == model.checkpoints.get(id)}
    wanted = model.wanted - asked.deletes
    if seen.shown is not None:
        given_up = {id: item.name for id, item in (before.shown or {}).items() if id not in shown and id not in asked.deletes}
        faults += [
            Fault("lost", f"checkpoint {name} was given up, although its data are there")
            for id, name in given_up.items()
            if id in wanted and whole(model.checkpoints[id], before)
        ]
        spoilt = {id for id in right & wanted & shown.keys() if shown[id].contents != model.checkpoints[id]}
        faults += [Fault("lost", f"checkpoint {shown[id].name} has another content") for id in spoilt]
        wanted = (wanted - given_up.keys()) | new.keys()
    restored = any(_same(seen.vm, target) for target in asked.restores)
    faults += _vm_faults(model, before, seen, asked)
    faults += _gone(replace(model, wanted=model.wanted - asked.deletes), before, seen, asked)
    newest, older = model.newest, model.older
    if restored or asked.accepts:
        older = older if _same(model.vm, newest) else (*older, newest)
        newest = seen.vm or newest
    elif asked.mends and before.told and seen.vm is not None and _same(seen.vm, model.vm):
        # Somebody changed the VM's own disks. That was said, and is how they are from now on.
        older = (*older, newest)
        newest = {**newest, **{target: seen.vm.get(target) for target in before.told}}
    model = Model({**model.checkpoints, **new}, wanted, seen.vm, newest, older)
    return model, (*faults, *silent(model, seen), *unnamed(model, seen))


def silent(model: Model, seen: Seen) -> tuple[Fault, ...]:
    """Checkpoints with a wrong content, of which nothing says so."""
    if seen.unfinished:
        return ()
    return tuple(
        Fault("silent", f"checkpoint {item.name} has a wrong content in {_differing(item.contents, model.checkpoints[id])}")
        for id, item in (seen.shown or {}).items()
        if id in model.checkpoints and not item.honest and item.contents != model.checkpoints[id]
    )


def unnamed(model: Model, seen: Seen, *, mended: bool = False) -> tuple[Fault, ...]:
    """Disks whose newest data are there, while neither the VM nor a checkpoint that is shown has them, and doctor does not say
    where they are. `mended`: doctor has mended what it could."""
    if seen.shown is None or seen.unfinished or (seen.warned and not mended):
        return ()
    vm = seen.vm or {}
    named = seen.named | {value for item in seen.shown.values() for value in item.contents.values()}
    return tuple(
        Fault("lost", f"the newest data of {target} are there; the VM does not have them, and doctor does not name their image")
        for target, value in model.newest.items()
        if value in seen.there and vm.get(target) != value and value not in named and target not in seen.told
    )


def _vm_faults(model: Model, before: Seen, seen: Seen, asked: Asked) -> list[Fault]:
    if asked.crowded or asked.accepts:
        return []
    allowed = [model.vm, *asked.restores]
    if asked.mends:
        if not whole(model.newest, before):
            return []
        known: dict[str, str | None] = {}
        for contents in (*model.older, model.newest):  # a disk that was detached, and is back, gets its own last data
            known |= contents
        allowed += [model.newest, {target: known.get(target, value) for target, value in (model.vm or {}).items()}]
    if any(_same(seen.vm, contents) for contents in allowed):
        return []
    return [Fault("lost", f"the VM has other data than before in {_differing(seen.vm or {}, model.vm or {})}")]


def _gone(model: Model, before: Seen, seen: Seen, asked: Asked) -> list[Fault]:
    """What was on the disks before the verb, and is not any more."""
    dropped = {value for value in (model.vm or {}).values() if value} if asked.discards else set()
    kept = model.kept()
    return [
        Fault("lost", f"the data of {', '.join(sorted(kept[value]))} are gone")
        for value in sorted((before.there & kept.keys()) - seen.there)
        if not (value in dropped and not any(value in model.checkpoints[id].values() for id in model.wanted))
    ]


def whole(contents: Contents, seen: Seen) -> bool:
    """Whether all of it is on the disks, wherever."""
    return all(value in seen.there for value in contents.values())


def _same(one: Contents | None, other: Contents | None) -> bool:
    return (None if one is None else dict(one)) == (None if other is None else dict(other))


def _differing(found: Contents, wanted: Contents) -> str:
    return ", ".join(sorted(target for target in found.keys() | wanted.keys() if found.get(target) != wanted.get(target)))
