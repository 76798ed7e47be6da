"""The catalog's disk is full, before an operation or from its first step on: nothing is changed, or all is done."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.bare import directory
from quiesce.catalog.journal import Journal
from quiesce.model.errors import NoSpaceError
from quiesce.model.grades import Consistency
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.rename import rename
from quiesce.operations.restore import restore
from tests.disks.scene import Scene
from tests.host import Quiesce

KIB = 1024


class SmallCatalog:
    """A VM with the checkpoints `one` and `two`, whose catalog lies on a filesystem of 8 MiB."""

    def __init__(self, path: Path, place: Path) -> None:
        self.place = place
        self.scene = Scene(path)
        self.scene.catalog.close()
        self.scene.url = f"sqlite:///{place}/catalog.db"
        self.scene.reopen()
        self.scene.start()
        self.scene.create("one")
        self.scene.create("two")
        self.before = self.state()

    def state(self) -> tuple[bool, tuple[object, ...], dict[str, str], set[str]]:
        images = {path for path in self.scene.files() if path.endswith(".qcow2")}
        return self.scene.running, self.scene.tree().nodes, self.scene.sources(), images

    def fill(self, leave: int) -> None:
        found = os.statvfs(self.place)
        ballast = self.place / "ballast"
        size = ballast.stat().st_size if ballast.exists() else 0
        with ballast.open("ab") as file:
            os.posix_fallocate(file.fileno(), size, max(1, found.f_bavail * found.f_frsize - leave))

    def empty(self) -> None:
        (self.place / "ballast").unlink()


@pytest.fixture
def small() -> Iterator[SmallCatalog]:
    with directory() as path:
        place = path / "small"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=True)
        try:
            made = SmallCatalog(path, place)
            yield made
            made.scene.remove()
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


VERBS: dict[str, Callable[[Scene], object]] = {
    "checkpoint": lambda scene: checkpoint(scene.context, scene.name, name="x", required=Consistency.CRASH),
    "restore": lambda scene: restore(scene.context, scene.reference("one")),
    "delete": lambda scene: delete(scene.context, [scene.reference("one")]),
    "rename": lambda scene: rename(scene.context, scene.reference("one"), "x"),
}


@pytest.mark.parametrize("leave", [0, 4 * KIB, 96 * KIB, 600 * KIB, 4096 * KIB])
@pytest.mark.parametrize("verb", VERBS)
def test_full_before(small: SmallCatalog, verb: str, leave: int) -> None:
    """Broken: a restore would power the VM off and then fail."""
    small.fill(leave)
    try:
        VERBS[verb](small.scene)
    except NoSpaceError as error:
        assert error.details["directory"] == str(small.place)
        assert small.state() == small.before
    else:
        assert leave
        assert small.state() != small.before
    small.empty()
    (found,) = doctor(small.scene.context, small.scene.name, repair=False)
    assert found.found == ()


@pytest.mark.parametrize("verb", VERBS)
def test_full_from_the_first_step_on(small: SmallCatalog, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: an operation that has powered a VM off, or switched its disks, could not record that."""
    begin = Journal.__init__

    def begin_and_fill(self: Journal, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        small.fill(0)

    monkeypatch.setattr(Journal, "__init__", begin_and_fill)
    VERBS[verb](small.scene)
    assert small.state() != small.before
    (found,) = doctor(small.scene.context, small.scene.name, repair=False)
    assert found.found == ()


@pytest.mark.parametrize("leave", [0, 96 * KIB])
@pytest.mark.parametrize("words", ["vms", "tree {}", "checkpoint {} --require crash", "settings {} --type standard"])
def test_the_command_line_says_so(small: SmallCatalog, words: str, leave: int, quiesce: Quiesce) -> None:
    """Broken: a traceback."""
    small.scene.catalog.close()
    small.fill(leave)
    quiesce.environment["QUIESCE_CATALOG"] = f"{small.place}/catalog.db"
    done = quiesce.run(*words.format(small.scene.name).split())
    assert done.returncode in ((0, 7) if leave or words in ("vms", "tree {}") else (7,))
    assert "Traceback" not in done.stderr
    assert (done.returncode == 7) == ("is full" in done.stderr)
    small.empty()
    small.scene.reopen()
