"""What happens to the host and to our catalog: a power failure, a full disk, a new host name, another catalog."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path
from random import Random

import libvirt

from lab.hands.world import (
    BACKUPS,
    CATALOG,
    OTHER_CATALOG,
    Hand,
    NotNowError,
    RefusedByToolError,
    World,
    copy_tree,
    end_libvirt,
    start_libvirt,
)
from lab.machine import URI

RUN = Path("/run/libvirt/qemu")
BALLAST = "ballast.raw"
HOST = socket.gethostname()


def _connect(world: World) -> None:
    world.forest.bare.connection = libvirt.open(URI)
    world.domain()


def _kill_qemu(world: World) -> None:
    for path in RUN.glob(f"{world.first_name}*.pid"):
        os.kill(int(path.read_text()), signal.SIGKILL)


def restart_libvirt(world: World, dice: Random) -> str:
    number = dice.choice((signal.SIGTERM, signal.SIGKILL))
    end_libvirt(number)
    start_libvirt()
    _connect(world)
    return f"libvirtd ends by {number.name} and starts"


def kill_qemu(world: World, _dice: Random) -> str:
    world.on()
    _kill_qemu(world)
    return "QEMU is killed"


def reboot(world: World, _dice: Random) -> str:
    """All that is in /run is gone: a VM that was undefined while it ran is lost to libvirt."""
    end_libvirt(signal.SIGKILL)
    _kill_qemu(world)
    shutil.rmtree(RUN, ignore_errors=True)
    for path in world.images():  # libvirt holds what it noted here for outdated once the host has another boot time
        for name in os.listxattr(path):
            if name.startswith("trusted.libvirt"):
                os.removexattr(path, name)
    start_libvirt()
    _connect(world)
    return "the host loses its power, and starts"


def rename_host(world: World, dice: Random) -> str:
    name = f"host{dice.randrange(1000)}"

    def set_name(name: str) -> None:
        socket.sethostname(name)
        end_libvirt(signal.SIGTERM)
        start_libvirt()
        _connect(world)

    set_name(name)
    world.undo["host name"] = lambda: set_name(HOST)
    return f"hostnamectl hostname {name}"


def full_disk(world: World, dice: Random) -> str:
    leave = dice.choice((0, 64, 512, 1024, 2048, 4096)) * 1024
    path = world.directory / BALLAST
    free = os.statvfs(world.directory)
    size = max(free.f_bavail * free.f_frsize - leave, 4096)
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), file.tell(), size)
    world.undo["full disk"] = path.unlink
    return f"the disk is full but for {leave // 1024} KiB"


def room_again(world: World, _dice: Random) -> str:
    undo = world.undo.pop("full disk", None)
    if not undo:
        raise NotNowError
    undo()
    return "there is room again"


def _catalog(world: World) -> Path:
    world.forest.catalog.close()
    return world.directory / CATALOG


def lose_catalog(world: World, _dice: Random) -> str:
    for path in _catalog(world).glob("catalog.db*"):
        path.unlink()
    world.trusted = False
    return "rm catalog.db*"


def spoil_catalog(world: World, dice: Random) -> str:
    path = _catalog(world) / "catalog.db"
    if not path.exists():
        raise NotNowError
    start = dice.choice((0, 4096, path.stat().st_size // 2 // 4096 * 4096))
    with path.open("r+b") as file:
        file.seek(start)
        file.write(dice.randbytes(8192))
    world.trusted = False
    return f"catalog.db overwritten at {start}"


def read_only_catalog(world: World, _dice: Random) -> str:
    path = _catalog(world) / "catalog.db"
    if not path.exists():
        raise NotNowError
    world.run("chattr", "+i", str(path))
    world.undo["read-only catalog"] = lambda: world.run("chattr", "-i", str(path))
    return "chattr +i catalog.db"


def back_up_catalog(world: World, _dice: Random) -> str:
    place = world.directory / BACKUPS / "backup of the catalog"
    shutil.rmtree(place, ignore_errors=True)
    copy_tree(_catalog(world), place)
    world.undo["backup of the catalog"] = lambda: shutil.rmtree(place, ignore_errors=True)
    return "cp -a of the catalog to a backup"


def put_catalog_back(world: World, _dice: Random) -> str:
    place = world.directory / BACKUPS / "backup of the catalog"
    if not place.is_dir():
        raise NotNowError
    shutil.rmtree(_catalog(world))
    copy_tree(place, world.directory / CATALOG)
    world.trusted = False
    return "the backup of the catalog put back"


def other_catalog(world: World, dice: Random) -> str:
    """Somebody runs quiesce with another catalog: another user, or a second host with the same storage."""
    name = world.name
    words = dice.choice(
        (
            ["checkpoint", name, "--name", world.next_name(), "--require", "crash"],
            ["checkpoint", name, "--name", world.next_name(), "--require", "crash"],
            ["delete", f"{name}@*"],
            ["doctor", name, "--repair"],
            ["catalog", "rebuild"],
        )
    )
    code, said = world.quiesce(*words, catalog=OTHER_CATALOG)
    if code:
        raise RefusedByToolError(f"with another catalog: quiesce {' '.join(words)}: {said[-200:]}")
    return f"with another catalog: quiesce {' '.join(words)}"


HANDS = (
    Hand("libvirtd starts anew", restart_libvirt, gentle=True),
    Hand("QEMU is killed", kill_qemu, gentle=True),
    Hand("the host starts anew", reboot, gentle=True),
    Hand("another host name", rename_host, gentle=True),
    Hand("the disk is full", full_disk, gentle=True),
    Hand("room on the disk", room_again, gentle=True),
    Hand("the catalog is lost", lose_catalog),
    Hand("the catalog is damaged", spoil_catalog),
    Hand("the catalog is read-only", read_only_catalog),
    Hand("a backup of the catalog", back_up_catalog),
    Hand("the backup of the catalog put back", put_catalog_back),
    Hand("another catalog", other_catalog),
)
