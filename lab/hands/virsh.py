"""What administrators, Ansible, clusters and backup tools do through libvirt."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from random import Random
from typing import Any

from lab.hands.world import Hand, NotNowError, World, sources, without_uuid

BUSY_S = "10"


def _target(world: World, dice: Random) -> tuple[str, str]:
    found = sorted(world.sources().items())
    if not found:
        raise NotNowError
    return dice.choice(found)


def _chain(world: World, path: str) -> list[str]:
    """The image and its backing files, as libvirt sees them in a running VM."""
    found = [path]
    while len(found) < 64:
        below = world.run("qemu-img", "info", "-U", "--output=json", found[-1])
        name = next((line.split('"')[3] for line in below.splitlines() if '"full-backing-filename"' in line), None)
        if name is None:
            return found
        found.append(name)
    return found


def _define(world: World, xml: str) -> None:
    path = world.directory / ".define.xml"
    path.write_text(xml)
    try:
        world.virsh("define", str(path))
    finally:
        path.unlink()


def define_first(world: World, _dice: Random) -> str:
    world.xml()
    _define(world, world.definitions[0])
    return "virsh define of the VM's first XML"


def define_backup(world: World, dice: Random) -> str:
    number = dice.randrange(len(world.definitions))
    world.definitions.append(world.xml())
    _define(world, world.definitions[number])
    return f"virsh define of an XML of earlier ({number})"


def define_same(world: World, _dice: Random) -> str:
    _define(world, world.xml())
    return "virsh define of the present XML"


def undefine(world: World, _dice: Random) -> str:
    world.definitions.append(world.xml())
    world.virsh("undefine", world.name, "--managed-save", "--snapshots-metadata", "--checkpoints-metadata")
    return "virsh undefine"


def undefine_and_define(world: World, _dice: Random) -> str:
    xml = world.xml()
    undefine(world, _dice)
    _define(world, xml)
    return "virsh undefine, and define again"


def define_with_new_uuid(world: World, _dice: Random) -> str:
    world.off()
    xml = world.xml()
    undefine(world, _dice)
    _define(world, without_uuid(xml))
    return "virsh undefine, and define with a new UUID"


def edit_disk(world: World, dice: Random) -> str:
    target, path = _target(world, dice)
    other = dice.choice([image for image in world.images() if f"{target}." in Path(image).name])
    _define(world, world.xml().replace(f"'{path}'", f"'{other}'"))
    return f"virsh edit: {target} is {Path(other).name}"


def define_after_undefine(world: World, dice: Random) -> str:
    if world.domain() is not None:
        raise NotNowError
    _define(world, dice.choice(world.definitions))
    return "virsh define of an XML of earlier, after an undefine"


def detach_disk(world: World, _dice: Random) -> str:
    if "vdb" not in sources(world.xml()):
        raise NotNowError
    world.definitions.append(world.xml())
    world.virsh("detach-disk", world.name, "vdb", "--config")
    return "virsh detach-disk vdb --config"


def attach_disk(world: World, dice: Random) -> str:
    if "vdb" in sources(world.xml()):
        raise NotNowError
    images = [image for image in world.images() if "vdb." in Path(image).name]
    if not images:
        raise NotNowError
    image = dice.choice(images)
    world.virsh("attach-disk", world.name, image, "vdb", "--config", "--driver", "qemu", "--subdriver", "qcow2")
    return f"virsh attach-disk {Path(image).name} vdb"


def attach_blank(world: World, _dice: Random) -> str:
    if "vdc" in sources(world.xml()):
        world.virsh("detach-disk", world.name, "vdc", "--config")
        return "virsh detach-disk vdc"
    path = world.directory / f"{world.next_name()}.vdc.qcow2"
    world.run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "192k")
    world.run("qemu-io", "-c", f"write -q -P {_dice.randrange(1, 250)} 0 64k", str(path))
    world.virsh("attach-disk", world.name, str(path), "vdc", "--config", "--driver", "qemu", "--subdriver", "qcow2")
    return "virsh attach-disk of a new disk vdc"


def snapshot_external(world: World, dice: Random) -> str:
    name = world.next_name()
    words = ["--disk-only", "--no-metadata"] if dice.random() < 0.7 else ["--disk-only"]
    world.virsh("snapshot-create-as", world.name, name, *words)
    return f"virsh snapshot-create-as {name} {' '.join(words)}"


def snapshot_internal(world: World, _dice: Random) -> str:
    name = world.next_name()
    world.virsh("snapshot-create-as", world.name, name)
    return f"virsh snapshot-create-as {name} (internal)"


def _snapshot(world: World, dice: Random) -> str:
    found = world.virsh("snapshot-list", world.name, "--name").split()
    if not found:
        raise NotNowError
    return dice.choice(found)


def snapshot_delete(world: World, dice: Random) -> str:
    name = _snapshot(world, dice)
    words = dice.choice((["--metadata"], []))
    world.virsh("snapshot-delete", world.name, name, *words)
    return f"virsh snapshot-delete {name} {' '.join(words)}"


def snapshot_revert(world: World, dice: Random) -> str:
    name = _snapshot(world, dice)
    world.virsh("snapshot-revert", world.name, name, "--force")
    return f"virsh snapshot-revert {name}"


def commit_active(world: World, dice: Random) -> str:
    world.on()
    target, path = _target(world, dice)
    below = _chain(world, path)[1:]
    if not below:
        raise NotNowError
    base = dice.choice(below)
    words = ["--shallow"] if base == below[0] else ["--base", base]
    world.virsh("blockcommit", world.name, target, *words, "--active", "--pivot", "--timeout", BUSY_S)
    return f"virsh blockcommit {target} --active --pivot into {Path(base).name}"


def commit_middle(world: World, dice: Random) -> str:
    world.on()
    target, path = _target(world, dice)
    below = _chain(world, path)[1:]
    if len(below) < 2:
        raise NotNowError
    top = dice.randrange(len(below) - 1)
    base = dice.randrange(top + 1, len(below))
    world.virsh("blockcommit", world.name, target, "--top", below[top], "--base", below[base], "--wait", "--timeout", BUSY_S)
    return f"virsh blockcommit {target} --top {Path(below[top]).name} --base {Path(below[base]).name}"


def pull(world: World, dice: Random) -> str:
    world.on()
    target, path = _target(world, dice)
    below = _chain(world, path)[2:]
    words = ["--base", dice.choice(below)] if below and dice.random() < 0.5 else []
    world.virsh("blockpull", world.name, target, *words, "--wait", "--timeout", BUSY_S)
    return f"virsh blockpull {target} {' '.join(Path(word).name for word in words)}"


def copy_and_pivot(world: World, dice: Random) -> str:
    world.on()
    target, _ = _target(world, dice)
    to = world.directory / f"{world.next_name()}.{target}.qcow2"
    words = ["--shallow"] if dice.random() < 0.5 else []
    world.virsh(
        "blockcopy", world.name, target, str(to), "--format", "qcow2", *words, "--pivot", "--transient-job", "--timeout", BUSY_S
    )
    return f"virsh blockcopy {target} {' '.join(words)} --pivot"


def mirror(world: World, dice: Random) -> str:
    world.on()
    target, _ = _target(world, dice)
    to = world.directory / f"{world.next_name()}.{target}.qcow2"
    world.virsh("blockcopy", world.name, target, str(to), "--format", "qcow2", "--transient-job")
    world.undo[f"mirror {target}"] = lambda: world.virsh("blockjob", world.name, target, "--abort")
    return f"virsh blockcopy {target}, which goes on"


def resize(world: World, dice: Random) -> str:
    world.on()
    target, _ = _target(world, dice)
    world.virsh("blockresize", world.name, target, f"{1024 + 64 * dice.randrange(1, 5)}KiB")
    return f"virsh blockresize {target}"


def managed_save(world: World, _dice: Random) -> str:
    world.on()
    world.virsh("managedsave", world.name, "--paused")
    world.undo["managed save"] = lambda: world.virsh("managedsave-remove", world.name)
    return "virsh managedsave"


def managed_save_remove(world: World, _dice: Random) -> str:
    domain = world.domain()
    if domain is None or not domain.hasManagedSaveImage():
        raise NotNowError
    world.virsh("managedsave-remove", world.name)
    return "virsh managedsave-remove"


def rename(world: World, _dice: Random) -> str:
    world.off()
    new = world.first_name if world.name != world.first_name else f"{world.first_name}-renamed"
    world.virsh("domrename", world.name, new)
    return "virsh domrename"


def destroy(world: World, _dice: Random) -> str:
    world.on()
    world.virsh("destroy", world.name)
    return "virsh destroy"


def start(world: World, dice: Random) -> str:
    world.off()
    words = ["--paused"] if dice.random() < 0.8 else []
    world.virsh("start", world.name, *words)
    return f"virsh start {' '.join(words)}"


def reset(world: World, _dice: Random) -> str:
    world.on()
    world.virsh("reset", world.name)
    return "virsh reset"


def suspend_or_resume(world: World, dice: Random) -> str:
    world.on()
    word = dice.choice(("suspend", "resume"))
    world.virsh(word, world.name)
    return f"virsh {word}"


def autostart(world: World, _dice: Random) -> str:
    world.xml()
    world.virsh("autostart", world.name)
    world.undo["autostart"] = lambda: world.virsh("autostart", world.name, "--disable")
    return "virsh autostart"


def pool(world: World, dice: Random) -> str:
    """The pool is there from the first call on."""
    name = f"{world.first_name}-pool"

    def gone() -> None:
        for word in ("pool-destroy", "pool-undefine"):
            with contextlib.suppress(Exception):
                world.virsh(word, name)

    if name not in world.virsh("pool-list", "--all", "--name").split():
        world.virsh("pool-define-as", name, "dir", "--target", str(world.directory))
        world.undo["pool"] = gone
    word = dice.choice(("pool-start", "pool-refresh", "pool-destroy"))
    world.virsh(word, name)
    return f"virsh {word}"


def change_media(world: World, _dice: Random) -> str:
    if "device='cdrom'" not in world.xml():
        world.off()
        words = ["--type", "cdrom", "--mode", "readonly", "--targetbus", "scsi", "--config", "--driver", "qemu"]
        world.virsh("attach-disk", world.name, str(world.directory / "disk.raw"), "sda", *words, "--subdriver", "raw")
        return "virsh attach-disk of a CD"
    word = "--eject" if "disk.raw" in world.xml() else "--insert"
    world.virsh("change-media", world.name, "sda", *([str(world.directory / "disk.raw")] if word == "--insert" else []), word)
    return f"virsh change-media {word}"


def dump(world: World, _dice: Random) -> str:
    world.on()
    path = world.directory / ".core"
    try:
        world.virsh("dump", world.name, str(path), "--memory-only")
    finally:
        path.unlink(missing_ok=True)
    return "virsh dump --memory-only"


def libvirt_checkpoint(world: World, dice: Random) -> str:
    found = world.virsh("checkpoint-list", world.name, "--name").split()
    if found and dice.random() < 0.4:
        name = dice.choice(found)
        world.virsh("checkpoint-delete", world.name, name)
        return f"virsh checkpoint-delete {name}"
    world.on()
    name = world.next_name()
    world.virsh("checkpoint-create-as", world.name, name)
    return f"virsh checkpoint-create-as {name}"


def second_vm(world: World, dice: Random) -> str:
    """A clone somebody made by hand: another VM whose disk is an image of this one, or an overlay of it."""
    image = dice.choice(world.images())
    overlay = world.directory / f"{world.next_name()}.clone.qcow2"
    world.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, str(overlay))
    name = f"{world.first_name}-copy"
    domain: Any = world.domain()
    if domain is None or name in world.virsh("list", "--all", "--name").split():
        raise NotNowError
    disk = f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{overlay}'/><target dev='vda'/></disk>"
    _define(
        world,
        f"<domain type='qemu'><name>{name}</name><uuid>{uuid.UUID(int=dice.getrandbits(128), version=4)}</uuid>"
        f"<memory unit='MiB'>64</memory><os><type machine='q35'>hvm</type></os><devices>{disk}</devices></domain>",
    )
    return f"another VM on an overlay of {Path(image).name}"


HANDS = (
    Hand("virsh define, the first XML", define_first),
    Hand("virsh define, a backup", define_backup),
    Hand("virsh define, the same", define_same, gentle=True),
    Hand("virsh undefine", undefine, gentle=True),
    Hand("virsh undefine and define", undefine_and_define, gentle=True),
    Hand("virsh define, new UUID", define_with_new_uuid, gentle=True),
    Hand("virsh define after undefine", define_after_undefine),
    Hand("virsh edit, disk", edit_disk),
    Hand("virsh detach-disk", detach_disk),
    Hand("virsh attach-disk", attach_disk),
    Hand("virsh attach-disk, new", attach_blank),
    Hand("virsh snapshot, external", snapshot_external, gentle=True),
    Hand("virsh snapshot, internal", snapshot_internal),
    Hand("virsh snapshot-delete", snapshot_delete),
    Hand("virsh snapshot-revert", snapshot_revert, wrote=True),
    Hand("virsh blockcommit --active", commit_active),
    Hand("virsh blockcommit, middle", commit_middle),
    Hand("virsh blockpull", pull),
    Hand("virsh blockcopy --pivot", copy_and_pivot),
    Hand("virsh blockcopy", mirror, gentle=True),
    Hand("virsh blockresize", resize, wrote=True),
    Hand("virsh managedsave", managed_save, gentle=True),
    Hand("virsh managedsave-remove", managed_save_remove, gentle=True),
    Hand("virsh domrename", rename, gentle=True),
    Hand("virsh destroy", destroy, gentle=True),
    Hand("virsh start", start, gentle=True),
    Hand("virsh reset", reset, gentle=True),
    Hand("virsh suspend or resume", suspend_or_resume, gentle=True),
    Hand("virsh autostart", autostart, gentle=True),
    Hand("virsh pool", pool, gentle=True),
    Hand("virsh change-media", change_media),
    Hand("virsh dump", dump, gentle=True),
    Hand("virsh checkpoint-create", libvirt_checkpoint),
    Hand("virsh define, another VM on an overlay", second_vm, gentle=True),
)
