"""What is done to images behind everybody's back: qemu-img, qemu-io, and the tools for files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

from lab.forest import TARGETS, UNIT
from lab.hands.world import BACKUPS, Hand, NotNowError, World, copy_tree

AN_HOUR_NS = 3600 * 10**9


def _heads(world: World) -> set[str]:
    return set(world.sources().values()) if world.domain() is not None else set()


def _head(world: World, dice: Random) -> str:
    """An image of the VM, which is off."""
    world.off()
    found = sorted(path for path in _heads(world) if Path(path).exists())
    if not found:
        raise NotNowError
    return dice.choice(found)


def _other(world: World, dice: Random) -> str:
    """An image that the VM does not write: most often one of a checkpoint."""
    found = [path for path in world.images() if path not in _heads(world)]
    if not found:
        raise NotNowError
    return dice.choice(found)


def _any(world: World, dice: Random) -> str:
    found = world.images()
    if not found or (world.domain() is not None and world.active()):
        raise NotNowError
    return dice.choice(found)


def _write(world: World, path: str, dice: Random) -> str:
    offset, pattern = dice.randrange(200) * UNIT, dice.randrange(1, 250)
    world.run("qemu-io", "-c", f"write -q -P {pattern} {offset} {16 * UNIT}", path)
    return f"{Path(path).name} at {offset}"


def guest_writes(world: World, dice: Random) -> str:
    if not set(TARGETS) & world.sources().keys():
        raise NotNowError
    for target in TARGETS:
        if target in world.sources():
            world.forest.write(target, dice.randrange(200) * UNIT, 16 * UNIT, dice.randrange(1, 250))
    return f"the guest writes, {'running' if world.active() else 'off'}"


def write_head(world: World, dice: Random) -> str:
    return f"qemu-io write to the VM's image {_write(world, _head(world, dice), dice)}"


def write_image(world: World, dice: Random) -> str:
    return f"qemu-io write to {_write(world, _other(world, dice), dice)}"


def write_and_set_time_back(world: World, dice: Random) -> str:
    path = _other(world, dice)
    before = os.stat(path)  # noqa: PTH116
    said = _write(world, path, dice)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"qemu-io write to {said}, and touch -d the time from before"


def discard_image(world: World, dice: Random) -> str:
    path = _other(world, dice)
    world.run("qemu-io", "-c", "discard -q 0 256k", path)
    return f"qemu-io discard in {Path(path).name}"


def commit(world: World, dice: Random) -> str:
    path = _any(world, dice)
    world.run("qemu-img", "commit", "-q", path)
    return f"qemu-img commit {Path(path).name}"


def rebase(world: World, dice: Random) -> str:
    path = _any(world, dice)
    base = dice.choice([image for image in world.images() if image != path])
    unsafe = ["-u"] if dice.random() < 0.4 else []
    world.run("qemu-img", "rebase", "-q", *unsafe, "-F", "qcow2", "-b", base, path)
    return f"qemu-img rebase {' '.join(unsafe)} {Path(path).name} onto {Path(base).name}"


def flatten(world: World, dice: Random) -> str:
    path = _any(world, dice)
    world.run("qemu-img", "rebase", "-q", "-b", "", path)
    return f"qemu-img rebase -b '' {Path(path).name}"


def grow(world: World, dice: Random) -> str:
    path = _head(world, dice)
    world.run("qemu-img", "resize", "-q", path, f"+{64 * dice.randrange(1, 4)}K")
    return f"qemu-img resize of the VM's image {Path(path).name}"


def resize_image(world: World, dice: Random) -> str:
    path = _other(world, dice)
    words = ["--shrink", path, "512K"] if dice.random() < 0.3 else [path, "+64K"]
    world.run("qemu-img", "resize", "-q", *words)
    return f"qemu-img resize of {Path(path).name}"


def convert_in_place(world: World, dice: Random) -> str:
    path = _any(world, dice)
    new = f"{path}.new"
    world.run("qemu-img", "convert", "-O", "qcow2", *(["-c"] if dice.random() < 0.3 else []), path, new)
    Path(new).replace(path)
    return f"qemu-img convert of {Path(path).name} onto itself"


def internal_snapshot(world: World, dice: Random) -> str:
    path = _any(world, dice)
    world.run("qemu-img", "snapshot", "-c", world.next_name(), path)
    return f"qemu-img snapshot -c in {Path(path).name}"


def internal_revert(world: World, dice: Random) -> str:
    path = _any(world, dice)
    names = [line.split()[1] for line in world.run("qemu-img", "snapshot", "-l", path).splitlines()[2:]]
    if not names:
        raise NotNowError
    world.run("qemu-img", "snapshot", dice.choice(("-a", "-d")), dice.choice(names), path)
    return f"qemu-img snapshot -a or -d in {Path(path).name}"


def amend(world: World, dice: Random) -> str:
    path = _any(world, dice)
    world.run("qemu-img", "amend", "-q", "-f", "qcow2", "-o", "lazy_refcounts=" + dice.choice(("on", "off")), path)
    return f"qemu-img amend {Path(path).name}"


def bitmap(world: World, dice: Random) -> str:
    path = _any(world, dice)
    world.run("qemu-img", "bitmap", "--add", path, world.next_name())
    return f"qemu-img bitmap --add {Path(path).name}"


def check(world: World, dice: Random) -> str:
    path = _any(world, dice)
    world.run("qemu-img", "check", "-q", "-r", "all", path)
    return f"qemu-img check -r all {Path(path).name}"


def move_away(world: World, dice: Random) -> str:
    path = Path(_any(world, dice))
    aside = world.directory / "aside"
    aside.mkdir(exist_ok=True)
    path.rename(aside / path.name)
    world.moved.append((path, aside / path.name))
    return f"mv {path.name} aside/"


def move_back(world: World, _dice: Random) -> str:
    if not world.moved:
        raise NotNowError
    path, aside = world.moved.pop()
    if path.exists() or not aside.exists():
        raise NotNowError
    aside.rename(path)
    return f"mv aside/{path.name} back"


def rename_image(world: World, dice: Random) -> str:
    path = Path(_any(world, dice))
    new = path.with_name(f"{world.next_name()}.{path.name}")
    path.rename(new)
    return f"mv {path.name} {new.name}"


def swap(world: World, dice: Random) -> str:
    one, other = Path(_any(world, dice)), Path(_any(world, dice))
    if one == other:
        raise NotNowError
    between = one.with_suffix(".swap")
    one.rename(between)
    other.rename(one)
    between.rename(other)
    return f"{one.name} and {other.name} swapped"


def copy_over(world: World, dice: Random) -> str:
    one, other = _any(world, dice), _any(world, dice)
    if one == other:
        raise NotNowError
    shutil.copy2(one, other)
    return f"cp -a {Path(one).name} {Path(other).name}"


def copy_onto_itself(world: World, dice: Random) -> str:
    path, keep = _any(world, dice), dice.random() < 0.5
    (shutil.copy2 if keep else shutil.copy)(path, f"{path}.copy")
    Path(f"{path}.copy").replace(path)
    return f"{Path(path).name} replaced by a copy {'with' if keep else 'without'} its time"


def remove_image(world: World, dice: Random) -> str:
    path = _other(world, dice)
    Path(path).unlink()
    return f"rm {Path(path).name}"


def remove_manifest(world: World, dice: Random) -> str:
    found = sorted(world.directory.glob("quiesce-*.json"))
    if not found:
        raise NotNowError
    path = dice.choice(found)
    path.unlink()
    return f"rm {path.name}"


def truncate(world: World, dice: Random) -> str:
    path = _other(world, dice)
    os.truncate(path, Path(path).stat().st_size // 2)
    return f"truncate of {Path(path).name} to a half"


def dig_holes(world: World, dice: Random) -> str:
    path = _any(world, dice)
    world.run("fallocate", "--dig-holes", path)
    return f"fallocate --dig-holes {Path(path).name}"


def permissions(world: World, dice: Random) -> str:
    path = _any(world, dice)
    mode = Path(path).stat().st_mode & 0o7777
    Path(path).chmod(0)
    os.chown(path, 65534, 65534)
    world.undo[f"mode {path}"] = lambda: Path(path).chmod(mode)
    return f"chmod 0 and chown nobody {Path(path).name}"


def immutable(world: World, dice: Random) -> str:
    path = _any(world, dice)
    world.run("chattr", "+i", path)
    world.undo[f"immutable {path}"] = lambda: world.run("chattr", "-i", path)
    return f"chattr +i {Path(path).name}"


def link(world: World, dice: Random) -> str:
    path = Path(_any(world, dice))
    aside = world.directory / "aside"
    aside.mkdir(exist_ok=True)
    new = aside / f"{world.next_name()}.{path.name}"
    path.rename(new)
    path.symlink_to(new)
    return f"{path.name} moved to aside/, and a symbolic link in its place"


def touch(world: World, dice: Random) -> str:
    path = _any(world, dice)
    now = Path(path).stat().st_mtime_ns + dice.choice((-24, 24)) * AN_HOUR_NS
    os.utime(path, ns=(now, now))
    return f"touch -d, by a day, {Path(path).name}"


def back_up(world: World, _dice: Random) -> str:
    place = world.directory / BACKUPS / "backup"
    world.off()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path in world.images():
        if Path(path).parent == world.directory:
            shutil.copy2(path, place)
    world.undo["backup"] = lambda: shutil.rmtree(place, ignore_errors=True)
    return "cp -a of all images to a backup"


def put_backup_back(world: World, dice: Random) -> str:
    place = world.directory / BACKUPS / "backup"
    world.off()
    if not place.is_dir():
        raise NotNowError
    if dice.random() < 0.5:
        copy_tree(place, world.directory)
        return "cp -a of all images of the backup back"
    path = dice.choice(sorted(place.iterdir()))
    shutil.copy2(path, world.directory)
    return f"cp -a of {path.name} of the backup back"


HANDS = (
    Hand("the guest writes", guest_writes, wrote=True),
    Hand("the guest writes again", guest_writes, wrote=True),
    Hand("qemu-io write, the VM's image", write_head, wrote=True),
    Hand("qemu-io write", write_image),
    Hand("qemu-io write, time set back", write_and_set_time_back),
    Hand("qemu-io discard", discard_image),
    Hand("qemu-img commit", commit),
    Hand("qemu-img rebase", rebase),
    Hand("qemu-img rebase -b ''", flatten),
    Hand("qemu-img resize, the VM's image", grow, wrote=True),
    Hand("qemu-img resize", resize_image),
    Hand("qemu-img convert", convert_in_place),
    Hand("qemu-img snapshot -c", internal_snapshot),
    Hand("qemu-img snapshot -a", internal_revert),
    Hand("qemu-img amend", amend),
    Hand("qemu-img bitmap", bitmap),
    Hand("qemu-img check -r", check),
    Hand("mv away", move_away),
    Hand("mv back", move_back),
    Hand("mv", rename_image),
    Hand("mv, two swapped", swap),
    Hand("cp over", copy_over),
    Hand("cp onto itself", copy_onto_itself),
    Hand("rm", remove_image),
    Hand("rm of a manifest", remove_manifest),
    Hand("truncate", truncate),
    Hand("fallocate --dig-holes", dig_holes),
    Hand("chmod and chown", permissions, gentle=True),
    Hand("chattr +i", immutable, gentle=True),
    Hand("ln -s", link),
    Hand("touch -d", touch),
    Hand("a backup of the images", back_up),
    Hand("the backup of the images put back", put_backup_back),
)
