"""One VM with checkpoints, on a host of its own, for a history: how to act on it, and how to look at it without trusting it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import libvirt

from lab import victim
from lab.forest import SAVED, Forest
from lab.grove import Grove
from lab.hands.contents import MAGIC, UnreadableError, chain, digest
from lab.hands.model import MISSING, Contents, Model, Seen, Shown
from lab.machine import URI
from quiesce.catalog import journal
from quiesce.model.errors import QuiesceError
from quiesce.model.tree import Checkpoint
from quiesce.operations.doctor import doctor
from quiesce.operations.restore_plan import plan_restore
from quiesce.operations.tree import tree
from quiesce.results import to_json

TIMEOUT_S = 120
OTHER_CATALOG = "other"
BACKUPS = SAVED
"""Nothing that is below is an image of anybody."""
CATALOG = "catalog"
KEPT = ("owner.lock", SAVED)


class NotNowError(Exception):
    """The hand, or the verb, has nothing to act on."""


@dataclass(frozen=True)
class Hand:
    name: str
    act: Callable[[World, Random], str]
    """Returns what was done, for the history. Raises NotNowError; any other error: it was done in part, or refused."""
    wrote: bool = False
    """It is the guest, or an administrator who changes the content of the VM's disks on purpose."""
    gentle: bool = False
    """Changes the content of no image and removes none, so it may also happen during a verb of ours."""


class World:
    """`undo` has what a later look at the end of the history needs: how to take impediments away again."""

    def __init__(self, path: Path) -> None:
        self.grove = Grove(path)
        self.forest: Forest = self.grove.forest
        self.directory = path
        self.first_name = self.forest.name
        self._scratch = tempfile.TemporaryDirectory()
        self._output = Path(self._scratch.name) / "output"
        self.begin()

    def begin(self) -> None:
        """Everything as at first: a tree with three branches, the VM off."""
        for domain in self._ours():
            with contextlib.suppress(libvirt.libvirtError):
                domain.destroy()
            with contextlib.suppress(libvirt.libvirtError):
                domain.undefineFlags(_EVERYTHING)
        self.forest.bare.name = self.first_name
        self.forest.put_back("full")
        self.undo: dict[str, Callable[[], object]] = {}
        self.uuid = ""
        """Of the VM whose checkpoints were shown last."""
        self.crashes: list[str] = []
        """Errors of ours that are no answer to a user."""
        self.home: dict[str, str] = {}
        """Where the VM's newest data were seen last: the image of each disk."""
        self.trusted = True
        """Whether the catalog is the one that quiesce wrote last."""
        self.definitions = [self.xml()]
        self.moved: list[tuple[Path, Path]] = []
        self.names = iter(range(1000))
        ids = {node.name: node.id for node in self.forest.tree().checkpoints}
        seen = self.look()
        assert seen.shown is not None
        assert seen.vm is not None
        contents = {id: seen.shown[id].contents for id in ids.values()}
        self.model = Model(contents, frozenset(contents), seen.vm, seen.vm)
        self.seen = self.look(self.model)
        """The last look."""

    def remove(self) -> None:
        self.begin()
        self.grove.remove()
        self._scratch.cleanup()

    # Acting

    @property
    def name(self) -> str:
        return self.forest.name

    def name_or_uuid(self) -> str:
        """As doctor takes it: the catalog may not know the last name of a VM that libvirt does not have."""
        return self.uuid if self.domain() is None and self.uuid else self.name

    def virsh(self, *arguments: str) -> str:
        done = subprocess.run(
            ["virsh", "-q", "-c", URI, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode:
            raise RefusedByToolError(f"virsh {arguments[0]}: {done.stderr.strip()[:200]}")
        return done.stdout

    def run(self, *words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            raise RefusedByToolError(f"{words[0]}: {done.stderr.strip()[:200]}")
        return done.stdout

    def quiesce(
        self,
        *words: str,
        catalog: str = CATALOG,
        meanwhile: Callable[[], None] | None = None,
        kill_after_s: float | None = None,
        clock: timedelta = timedelta(),
    ) -> tuple[int | None, str]:
        """(exit code, output). None: it did not end in time, and was killed."""
        place = str(self.directory / catalog / "catalog.db")
        self.forest.catalog.close()
        process = victim.start(list(words), place, self._output, clock=clock)
        if kill_after_s is not None and victim.wait(process, kill_after_s) is None:
            os.kill(process.pid or 0, signal.SIGKILL)
        if meanwhile:
            meanwhile()
        code = victim.wait(process, TIMEOUT_S)
        if code is None:
            process.kill()
            process.join()
        return code, self._output.read_text() if self._output.exists() else ""

    def next_name(self) -> str:
        return f"n{next(self.names)}"

    def off(self) -> None:
        if self.active():
            raise NotNowError

    def on(self) -> None:
        if not self.active():
            raise NotNowError

    def active(self) -> bool:
        domain = self.domain()
        if domain is None:
            raise NotNowError
        return bool(domain.isActive())

    # Looking

    def _ours(self) -> list[Any]:
        connection = self.forest.bare.connection
        with contextlib.suppress(libvirt.libvirtError):
            return [item for item in connection.listAllDomains() if item.name().startswith(self.first_name)]
        self.forest.bare.connection = libvirt.open(URI)
        return [item for item in self.forest.bare.connection.listAllDomains() if item.name().startswith(self.first_name)]

    def domain(self) -> Any:
        """The VM as libvirt has it now, under whatever UUID; None: libvirt does not have it."""
        found = [item for item in self._ours() if not item.name().endswith("-copy")]
        if found:
            self.forest.bare.domain = found[0]
            self.forest.bare.name = str(found[0].name())
        return found[0] if found else None

    def xml(self, *, inactive: bool = True) -> str:
        domain = self.domain()
        if domain is None:
            raise NotNowError
        return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0))

    def sources(self) -> dict[str, str]:
        """The images that the VM has now, or will have when it starts."""
        return sources(self.xml(inactive=not self.active()))

    def images(self) -> list[str]:
        """All images, but for those that are kept for the next history."""
        found = []
        for top, directories, files in os.walk(self.directory):
            directories[:] = [name for name in directories if name not in (SAVED, CATALOG, OTHER_CATALOG)]
            for name in files:
                path = Path(top, name)
                with contextlib.suppress(OSError), path.open("rb") as file:
                    if file.read(4) == MAGIC:
                        found.append(str(path))
        return sorted(found)

    def checkpoints(self) -> list[Checkpoint]:
        """Those that the tree shows. Raises NotNowError if it shows none."""
        try:
            self.reopen()
            found = list(tree(self.forest.context, self.name).checkpoints)
        except QuiesceError:
            raise NotNowError from None
        if not found:
            raise NotNowError
        return found

    def reopen(self) -> None:
        self.forest.catalog.close()
        self.forest.reopen()

    def look(self, model: Model | None = None) -> Seen:
        domain = self.domain()
        if domain is not None and domain.isActive():
            with contextlib.suppress(Exception):  # while a block job runs, or QEMU ends
                self.forest.flush()
        known: dict[str, str | None] = {}

        def content(path: str) -> str | None:
            if path not in known:
                try:
                    known[path] = digest(path)
                except UnreadableError:
                    known[path] = None
            return known[path]

        there = frozenset(value for path in self.images() if (value := content(path)))
        vm = None if domain is None else {target: content(path) for target, path in self.sources().items()}
        if model and vm == model.newest:
            self.home = self.sources()
        shown, unfinished = self._shown(content, model)
        seen = Seen(shown, vm, there, unfinished=unfinished)
        if model and shown is not None and any((vm or {}).get(target) != value for target, value in model.newest.items()):
            said = self.complaints()
            named = {value for path, value in known.items() if value and path in said.text}
            now = self.sources() if vm is not None else {}
            told = {
                target
                for target, path in self.home.items()
                if now.get(target, path) == path and any(image in said.text for image in chain(path))
            }
            seen = Seen(shown, vm, there, frozenset(named), bool(said.wrong), frozenset(told), unfinished)
        return seen

    def _shown(self, content: Callable[[str], str | None], model: Model | None) -> tuple[dict[str, Shown] | None, bool]:
        try:
            self.reopen()
            found = tree(self.forest.context, self.name)
            key = self.forest.key
            unfinished = bool(journal.interrupted(self.forest.catalog, key))
        except (QuiesceError, libvirt.libvirtError):
            return None, False
        if found.nodes:
            self.uuid = key.uuid
        elif key.uuid != self.uuid:  # to the catalog, it is another VM
            return None, False
        shown = {}
        for node in found.checkpoints:
            contents: Contents = {disk.target: content(disk.path) for disk in node.disks}
            wrong = model is not None and contents != model.checkpoints.get(node.id, MISSING)
            shown[node.id] = Shown(node.name, contents, bool(node.changed) or (wrong and self._refused(node)))
        return shown, unfinished

    def _refused(self, node: Checkpoint) -> bool:
        context = self.forest.context
        try:
            with context.vm(self.name) as vm, context.locked(vm, "look"):
                plan_restore(context, vm, node.id, start=False, discard_current=True, accept_changed=False)
        except QuiesceError:
            return True
        except Exception as error:  # noqa: BLE001 - it is a finding
            self.crashes.append(f"the plan of a restore: {error!r}")
        return False

    def complaints(self, *, repair: bool = False) -> Complaints:
        try:
            found = doctor(self.forest.context, self.name_or_uuid(), repair=repair)
        except QuiesceError as error:
            return Complaints(f"{error.message} {error.hint}", (error.message,))
        except Exception as error:  # noqa: BLE001 - it is a finding
            self.crashes.append(f"doctor: {error!r}")
            return Complaints("", ())
        wrong, mended = (text for item in found for text in item.found), (text for item in found for text in item.mended)
        return Complaints(json.dumps(to_json(found)), tuple(wrong), tuple(mended))


@dataclass(frozen=True)
class Complaints:
    """What doctor says."""

    text: str
    wrong: tuple[str, ...]
    mended: tuple[str, ...] = ()


class RefusedByToolError(Exception):
    """A tool of others ended with an error."""


def sources(xml: str) -> dict[str, str]:
    """By target: the files of the disks in a definition."""
    found = {}
    for disk in ET.fromstring(xml).iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if disk.get("device", "disk") == "disk" and source is not None and target is not None and source.get("file"):
            found[str(target.get("dev"))] = str(source.get("file"))
    return found


def libvirt_pid() -> int:
    return int(Path("/run/libvirtd.pid").read_text())


def start_libvirt() -> None:
    subprocess.run(["script/bootstrap"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end_libvirt(number: int) -> None:
    """Returns when it has ended: one that still ends would answer script/bootstrap, and nobody start another."""
    pid = libvirt_pid()
    for signal_number in (number, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if not Path(f"/proc/{pid}").exists():
                return
            time.sleep(0.02)


def without_uuid(xml: str) -> str:
    return re.sub(r"<uuid>.*?</uuid>", "", xml)


def copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)


_EVERYTHING = (
    libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
)
