"""A pool that is full, before a step or in its middle: nothing is lost, and the error says how many bytes are missing where."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.bare import directory
from lab.forest import TARGETS, Disks, Forest, check, read
from quiesce.disks import machine_files, merges
from quiesce.model.errors import NoSpaceError
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.model.settings import Type
from quiesce.operations import export as export_module
from quiesce.operations import import_ as import_module
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.export import export
from quiesce.operations.import_ import import_vm
from quiesce.operations.restore import restore
from quiesce.storage.directories import Directory
from quiesce.taking import standard

MIB = 1024 * 1024


@contextmanager
def small_filesystem(size: int = 160 * MIB) -> Iterator[Path]:
    """A filesystem of its own, as a machine's directory, so that a killed run's is found and removed."""
    with directory() as path:
        backing, mounted = path / "filesystem", path / "pool"
        mounted.mkdir()
        with backing.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", backing], check=True)
        subprocess.run(["mount", "-o", "loop", backing, mounted], check=True)
        (mounted / "lost+found").rmdir()
        try:
            yield mounted
        finally:
            while subprocess.run(["umount", mounted], check=False, capture_output=True).returncode:
                time.sleep(0.1)  # another test's survey of all VMs is reading it


class Full:
    """A VM on a small filesystem, with two checkpoints and what they hold."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.forest = Forest(path, size=48 * MIB, name=path.parent.name)
        self.head: Disks = {}
        self.nodes: dict[str, Disks] = {}
        for number, name in enumerate(("one", "two"), 1):
            self.write(number)
            checkpoint(self.forest.context, self.forest.name, name=name, required=Consistency.CRASH)
            self.nodes[name] = self.head
        self.write(3)

    def write(self, number: int) -> None:
        for target in TARGETS:
            self.forest.write(target, number * 4 * MIB, 3 * MIB, number)
        self.head = {target: read(source) for target, source in self.forest.sources().items()}

    def fill(self, leave: int) -> None:
        """Until so many bytes are free."""
        with (self.path / "ballast").open("wb") as file:
            free = int(
                subprocess.run(["df", "--output=avail", "-B1", self.path], capture_output=True, text=True).stdout.split()[1]
            )
            subprocess.run(["fallocate", "-l", str(max(4096, free - leave)), file.name], check=True)

    def empty(self) -> None:
        (self.path / "ballast").unlink()


@pytest.fixture
def full() -> Iterator[Full]:
    with small_filesystem() as path:
        made = Full(path)
        yield made
        made.forest.remove()


def reference(full: Full, name: str) -> CheckpointReference:
    return CheckpointReference(full.forest.name, name)


VERBS: dict[str, Callable[[Full], object]] = {
    "create": lambda full: checkpoint(full.forest.context, full.forest.name, name="x", required=Consistency.CRASH),
    "standard": lambda full: checkpoint(full.forest.context, full.forest.name, name="x", type=Type.STANDARD),
    "restore": lambda full: restore(full.forest.context, reference(full, "one")),
    "merge the head": lambda full: delete(full.forest.context, [reference(full, "two")]),
    "merge below": lambda full: delete(full.forest.context, [reference(full, "one")]),
    "export": lambda full: export(full.forest.context, reference(full, "two"), f"{full.path}/export"),
    "import": lambda full: import_vm(full.forest.context, f"{full.path.parent}/export", to=f"{full.path}/copy", name="copy"),
}


@pytest.mark.parametrize("running", [True, False], ids=["running", "off"])
@pytest.mark.parametrize("checked", [True, False], ids=["full before", "full meanwhile"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_pool(full: Full, verb: str, checked: bool, running: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if verb == "standard" and not running:
        running = True
    if verb == "import":
        export(full.forest.context, reference(full, "two"), f"{full.path.parent}/export")
    if running:
        full.forest.start(paused=False)
    full.fill(leave=100 * 1024)
    with monkeypatch.context() as patch:
        if not checked:  # it was not full when somebody looked
            patch.setattr(Directory, "require_room", lambda *_: None)
            patch.setattr("quiesce.operations.delete.require_possible", lambda *_: None)
            for module in (export_module, import_module, machine_files, merges, standard):
                patch.setattr(module, "require_room", lambda *_: None)
        with pytest.raises(NoSpaceError) as raised:
            VERBS[verb](full)
    assert str(full.path) in raised.value.message
    assert raised.value.details["directory"].startswith(str(full.path))
    assert raised.value.details["missing"] > 0
    assert full.forest.running == running or verb == "restore"
    full.empty()
    doctor(full.forest.context, full.forest.name, repair=True)
    hidden = {"merge the head": "two", "merge below": "one"}.get(verb) if not checked else None
    full.forest.stop() if full.forest.running else None
    check(full.forest, {name: disks for name, disks in full.nodes.items() if name != hidden}, full.head)
    full.forest.start()  # bootable
