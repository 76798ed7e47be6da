"""The verbs of ours between which others act: what each is asked to do, so that the model can tell what must come of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random

from lab.hands.contents import UnreadableError, digest
from lab.hands.model import Asked, Contents, Fault, Model
from lab.hands.world import NotNowError, World
from quiesce.catalog import exported
from quiesce.model.tree import Checkpoint

EXPORT = "export"
COPY = "copy"


@dataclass(frozen=True)
class Ask:
    words: tuple[str, ...]
    asked: Asked = field(default=Asked())
    finish: Callable[[World, Model, int | None], tuple[Fault, ...]] = lambda _world, _model, _code: ()
    """Looks at what the verb made besides, and takes it away. Gets the exit code."""
    clock: timedelta = timedelta()
    """How far the verb's clock is wrong."""


def _one(world: World, dice: Random) -> Checkpoint:
    return dice.choice(world.checkpoints())


def checkpoint(world: World, dice: Random) -> Ask:
    words = ["--type", "standard"] if dice.random() < 0.15 else ["--require", "crash"]
    return Ask(("checkpoint", world.name, "--name", world.next_name(), *words))


def checkpoint_yesterday(world: World, dice: Random) -> Ask:
    """The host's clock was put back, or a battery was empty."""
    words = ("checkpoint", world.name, "--name", world.next_name(), "--require", "crash")
    return Ask(words, clock=dice.choice((-1, 1)) * timedelta(days=1, seconds=dice.randrange(3600)))


def restore(world: World, dice: Random) -> Ask:
    node = _one(world, dice)
    discards = dice.random() < 0.4
    words = [*(["--discard-current"] if discards else []), *(["--start"] if dice.random() < 0.2 else [])]
    asked = Asked(restores=_contents(world, node), discards=discards)
    return Ask(("restore", f"{world.name}@{node.name}", *words), asked)


def restores(world: World, node: Checkpoint) -> Asked:
    return Asked(restores=_contents(world, node))


def restore_what_is_there(world: World, dice: Random) -> Ask:
    node = _one(world, dice)
    asked = Asked(restores=_contents(world, node), accepts=True)
    return Ask(("restore", f"{world.name}@{node.name}", "--accept-changed-images"), asked)


def _contents(world: World, node: Checkpoint) -> tuple[Contents, ...]:
    """Of the VM once it is restored: a disk that the checkpoint leaves out stays as it is. Also what is there, if the tree says
    that it is not what was checkpointed."""
    stays = {target: value for target, value in (world.model.vm or {}).items() if target in node.excluded}
    right = stays | dict(world.model.checkpoints.get(node.id, {}))
    shown = (world.seen.shown or {}).get(node.id)
    return (right, stays | dict(shown.contents)) if shown and shown.honest else (right,)


def delete(world: World, dice: Random) -> Ask:
    node = _one(world, dice)
    return Ask(("delete", f"{world.name}@{node.name}"), Asked(deletes=frozenset({node.id})))


def delete_subtree(world: World, dice: Random) -> Ask:
    found = world.checkpoints()
    root = dice.choice(found[len(found) // 2 :])
    going, before = {root.id}, 0
    while len(going) != before:
        before = len(going)
        going |= {node.id for node in world.forest.tree().nodes if node.parent in going}
    return Ask(("delete", f"{world.name}@{root.name}", "--subtree"), Asked(deletes=frozenset(going)))


def rename(world: World, dice: Random) -> Ask:
    return Ask(("rename", f"{world.name}@{_one(world, dice).name}", world.next_name()))


def export(world: World, dice: Random) -> Ask:
    node = _one(world, dice)
    place = world.directory / EXPORT

    def finish(_world: World, model: Model, code: int | None) -> tuple[Fault, ...]:
        try:
            return _wrong_export(place, node, model) if code == 0 else ()
        finally:
            shutil.rmtree(place, ignore_errors=True)

    return Ask(("export", f"{world.name}@{node.name}", str(place)), finish=finish)


def _wrong_export(place: Path, node: Checkpoint, model: Model) -> tuple[Fault, ...]:
    said = exported.load((place / exported.NAME).read_bytes())
    found = {disk.target: _digest(place / disk.file) for disk in said.disks}
    if found == model.checkpoints.get(node.id) or said.checkpoint.changed:
        return ()
    return (Fault("silent", f"the export of {node.name} has a wrong content"),)


def _digest(path: Path) -> str | None:
    try:
        return digest(str(path))
    except UnreadableError:
        return None


def export_and_import(world: World, dice: Random) -> Ask:
    node = _one(world, dice)
    place, copy = world.directory / EXPORT, world.directory / COPY
    shutil.rmtree(place, ignore_errors=True)
    code, _ = world.quiesce("export", f"{world.name}@{node.name}", str(place))
    if code != 0:
        shutil.rmtree(place, ignore_errors=True)
        raise NotNowError

    def finish(world: World, model: Model, code: int | None) -> tuple[Fault, ...]:
        try:
            faults = _wrong_export(place, node, model)
            right = set(model.checkpoints.get(node.id, {}).values())
            said = exported.load((place / exported.NAME).read_bytes()).checkpoint
            wrong = code == 0 and right - {_digest(path) for path in copy.glob("*.qcow2")}
            return (
                (Fault("silent", f"the import of {node.name} has a wrong content"),) if wrong and not said.changed else faults
            )
        finally:
            if f"{world.first_name}-copy" in world.virsh("list", "--all", "--name").split():
                world.virsh("undefine", f"{world.first_name}-copy", "--nvram")
            for path in (place, copy):
                shutil.rmtree(path, ignore_errors=True)

    return Ask(("import", str(place), "--name", f"{world.first_name}-copy", "--to", str(copy)), finish=finish)


def group(world: World, dice: Random) -> Ask:
    code, said = world.quiesce("group", "list", "--json")
    if code == 0 and '"shop"' not in said:
        return Ask(("group", "create", "shop", f"{world.name}:back"))
    parts = [node for node in world.checkpoints() if node.group]
    if not parts or dice.random() < 0.4:
        return Ask(("group", "checkpoint", "shop", "--name", world.next_name(), "--require", "crash"))
    node = dice.choice(parts)
    assert node.group is not None
    whole = f"shop@{node.group.name}"
    if dice.random() < 0.5:
        return Ask(("group", "delete", whole), Asked(deletes=frozenset({node.id})))
    return Ask(("group", "restore", whole), restores(world, node))


def look(world: World, dice: Random) -> Ask:
    words = [("tree", world.name), ("vms",), ("group", "list"), ("doctor",), ("doctor", world.name)]
    return Ask((*dice.choice(words), "--json"))


def show_or_diff(world: World, dice: Random) -> Ask:
    one, other = _one(world, dice), _one(world, dice)
    if dice.random() < 0.5:
        return Ask(("show", f"{world.name}@{one.name}", "--json"))
    return Ask(("diff", f"{world.name}@{one.name}", f"{world.name}@{other.name}", "--json"))


def repair(world: World, _dice: Random) -> Ask:
    return Ask(("doctor", world.name_or_uuid(), "--repair"), Asked(mends=True))


def repair_all(_world: World, _dice: Random) -> Ask:
    return Ask(("doctor", "--repair"), Asked(mends=True))


def rebuild(_world: World, _dice: Random) -> Ask:
    return Ask(("catalog", "rebuild"))


VERBS: dict[str, Callable[[World, Random], Ask]] = {
    "checkpoint": checkpoint,
    "checkpoint again": checkpoint,
    "checkpoint, the clock put back": checkpoint_yesterday,
    "restore": restore,
    "restore again": restore,
    "restore what is there": restore_what_is_there,
    "delete": delete,
    "delete a subtree": delete_subtree,
    "rename": rename,
    "export": export,
    "import": export_and_import,
    "group": group,
    "look": look,
    "show or diff": show_or_diff,
    "repair": repair,
    "repair again": repair,
    "repair all": repair_all,
    "rebuild": rebuild,
}
