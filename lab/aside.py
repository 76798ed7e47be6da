"""Kills verbs that boot copies aside, the copies, and libvirt, at random moments; what is left of them then is counted."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import libvirt

from lab import victim
from lab.bare import Bare, directory, restart_libvirt
from lab.forest import Forest
from lab.grove import Tally
from quiesce.catalog.lock import RUN
from quiesce.local.hub import ADDRESS
from quiesce.model.grades import Consistency
from quiesce.model.names import TRIAL_PREFIX
from quiesce.operations import group
from quiesce.operations.doctor import doctor
from quiesce.operations.group_checkpoint import group_checkpoint

TIMEOUT_S = 120.0
BOOT_S = 2
"""How long a copy runs before the verb gives up: there is no guest in it."""
NOT_AS_CLAIMED = 12
CARD = (
    "<interface type='bridge'><mac address='52:54:00:18:01:{number:02x}'/><source bridge='production'/>"
    "<model type='virtio'/></interface>"
)
VERBS = {
    "verify": ["verify", "{vm}@now"],
    "settle": ["settle", "{vm}@now"],
    "group verify": ["group", "verify", "shop@now"],
}
LISTENS = "0A"
"""A state in /proc/net/tcp: TCP_LISTEN in include/net/tcp_states.h."""


class _Scene:
    """Two VMs that run, in one group, and its checkpoint `now`."""

    def __init__(self, path: Path, other: Path, scratch: Path) -> None:
        self.forest = Forest(path)
        self.vms = [self.forest.bare, Bare(other, start=False)]
        self.output = scratch / "output"
        self._catalog = str(path / "catalog" / "catalog.db")
        self.forest.write("vda", 0, 256 * 1024, 1)
        for number, bare in enumerate(self.vms):
            bare.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
            bare.domain.attachDeviceFlags(CARD.format(number=number), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        group.create(self.forest.context, "shop", [f"{bare.name}:back" for bare in self.vms])
        group_checkpoint(self.forest.context, "shop", name="now", required=Consistency.CRASH)

    def start(self, verb: str) -> ForkServerProcess:
        words = [word.format(vm=self.forest.name) for word in VERBS[verb]]
        return victim.start([*words, "--timeout", str(BOOT_S), "--memory", "64"], self._catalog, self.output)

    def wait(self, process: ForkServerProcess, verb: str) -> int:
        code = victim.wait(process, TIMEOUT_S)
        if code is None:
            process.kill()
            raise SystemExit(f"{verb} did not end within {TIMEOUT_S:g} s:\n{self.output.read_text()}")
        return code

    def mend(self) -> list[str]:
        """What the doctor still complains of after it has mended all."""
        for bare in self.vms:
            bare.reconnect()
        self.forest.reopen()
        doctor(self.forest.context, None, repair=True)
        return [text for item in doctor(self.forest.context, None, repair=False) for text in item.found]

    def production(self) -> dict[str, str]:
        """Hash and time of each image, and the processes of the VMs."""
        found = {}
        for bare in self.vms:
            for path in bare.directory.glob("*.qcow2"):
                found[str(path)] = f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
            pid = Path(f"/run/libvirt/qemu/{bare.name}.pid").read_text()
            found[bare.name] = pid if Path(f"/proc/{pid.strip()}").is_dir() else "ended"
        return found

    def traces(self) -> set[str]:
        """VMs, processes, files, ports and locks."""
        files = [path for bare in self.vms for path in bare.directory.rglob("*") if "catalog" not in path.parts]
        locks = [path for where in (self.forest.catalog.lock_directory(), RUN) for path in where.glob("*.lock") if _held(path)]
        domains = [domain.name() for domain in self.forest.bare.connection.listAllDomains()]
        return {*map(str, files), *map(str, locks), *domains, *map(str, copies()), *_ports()}

    def remove(self) -> None:
        self.vms[1].remove()
        self.forest.remove()


def copies() -> list[int]:
    """The processes of all copies that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"guest={TRIAL_PREFIX}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def _held(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _ports() -> Iterator[str]:
    """On the address of the copies' network, those on which processes of this libvirt's host listen (lab/apart.py)."""
    address = "".join(f"{int(part):02X}" for part in reversed(ADDRESS.split(".")))
    sockets = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].startswith(address) and words[3] == LISTENS:
            sockets[f"socket:[{words[9]}]"] = words[1]
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if port := sockets.get(os.readlink(path)):  # noqa: PTH115 - it is no path
                yield f"port {port}"


def _kill_command(process: ForkServerProcess) -> None:
    process.kill()


def _kill_copy(process: ForkServerProcess) -> None:
    """One of them; if there is none yet, as soon as there is."""
    while victim.wait(process, 0.01) is None:
        for pid in copies()[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return


def _kill_libvirt(_process: ForkServerProcess) -> None:
    restart_libvirt()


DISASTERS = {"the command": _kill_command, "a copy": _kill_copy, "libvirt": _kill_libvirt}


def aside(tally: Tally, times: int, narrate: Callable[[str], None], dice: random.Random) -> None:
    """Each verb meets so many disasters; with one each, the verbs meet different ones. What is left of the copies, or changed
    in production, is counted."""
    with directory() as path, directory() as other, tempfile.TemporaryDirectory() as scratch:
        scene = _Scene(path, other, Path(scratch))
        try:
            order = dice.sample(sorted(DISASTERS), len(DISASTERS))
            for number, verb in enumerate(VERBS):
                began = time.monotonic()
                code = scene.wait(scene.start(verb), verb)
                if code != NOT_AS_CLAIMED:
                    raise SystemExit(f"{verb} of VMs without guests ended with {code}:\n{scene.output.read_text()}")
                took = time.monotonic() - began
                for turn in range(times):
                    _try(scene, verb, order[(number + turn) % len(order)], dice.uniform(0, took), tally)
                narrate(f"{verb}: {times} times the command, a copy or libvirt killed at a random moment")
        finally:
            scene.remove()


def _try(scene: _Scene, verb: str, disaster: str, moment_s: float, tally: Tally) -> None:
    what = f"{verb}, {disaster} killed after {moment_s:.3f} s"
    before, production = scene.traces(), scene.production()
    process = scene.start(verb)
    victim.wait(process, moment_s)
    DISASTERS[disaster](process)
    tally.kills += 1
    code = scene.wait(process, verb)
    complaints = scene.mend()
    left = sorted(scene.traces() - before)
    after = scene.production()
    changed = sorted(name for name in production.keys() | after.keys() if production.get(name) != after.get(name))
    tally.orphans += len(left) + len(complaints)
    tally.lost += len(changed)
    if left or changed or complaints:
        said = scene.output.read_text() if scene.output.exists() else ""
        tally.notes.append(f"{what}: left {left}, changed {changed}, {complaints}; it ended with {code}: {said}")
