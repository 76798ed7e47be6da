"""A catalog that is damaged, or that cannot be written: what only shows something works, and `catalog rebuild` makes a new one
without removing anything."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.disks.scene import Scene
from tests.host import Quiesce


@pytest.fixture
def command(scene: Scene) -> Quiesce:
    scene.create("one")
    scene.create("two")
    scene.catalog.close()
    return Quiesce(scene.bare.directory / "catalog")


def file_of(scene: Scene) -> Path:
    return scene.bare.directory / "catalog" / "catalog.db"


def empty(file: Path) -> None:
    file.write_bytes(b"")


def garbage(file: Path) -> None:
    file.write_bytes(os.urandom(20_000))


def no_header(file: Path) -> None:
    file.write_bytes(b"\0" * 100 + file.read_bytes()[100:])


def cut_in_a_page(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3 + 100])


def only_one_page(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:4096])


def garbage_in_the_middle(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:4096] + os.urandom(len(content) - 4096))


def another_ones_log(file: Path) -> None:
    """The database is garbage, and what was beside it is still there."""
    garbage(file)
    file.with_name("catalog.db-wal").write_bytes(os.urandom(8192))


DAMAGES = [empty, garbage, no_header, cut_in_a_page, only_one_page, garbage_in_the_middle, another_ones_log]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_catalog(scene: Scene, command: Quiesce, damage: Callable[[Path], None]) -> None:
    """Broken: no checkpoint could be seen any more, or a new catalog would take the place of the old one in silence."""
    file, name = file_of(scene), scene.name
    damage(file)
    left = file.read_bytes()
    assert [node["name"] for node in command("tree", name)["checkpoints"]] == ["one", "two"]
    assert command("show", f"{name}@one")["name"] == "one"
    assert name in [vm["name"] for vm in command("vms")]
    assert command("group", "list") == []
    for verb in (("checkpoint", name, "--require", "crash"), ("delete", f"{name}@one"), ("restore", f"{name}@one")):
        said = command.fails(*verb, code=1)
        assert str(file) in said
        assert "quiesce catalog rebuild" in said
    assert file.read_bytes() == left
    rebuilt = command.run("catalog", "rebuild")
    assert rebuilt.returncode == 0
    (aside,) = file.parent.glob("catalog.db.damaged-*")
    assert str(aside) in rebuilt.stderr
    assert aside.read_bytes() == left
    assert [node["name"] for node in command("tree", name)["checkpoints"]] == ["one", "two"]
    command("checkpoint", name, "--require", "crash", "--name", "three")
    scene.reopen()
    scene.check_contents("one", "two")


@pytest.fixture
def fixed(scene: Scene, command: Quiesce) -> Iterator[Quiesce]:
    """The catalog is on a filesystem that is mounted read-only."""
    place = file_of(scene).parent
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        yield command
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_catalog_that_can_only_be_read(scene: Scene, fixed: Quiesce) -> None:
    """Broken: nobody could see the checkpoints while a filesystem is mounted read-only after an error."""
    assert [node["name"] for node in fixed("tree", scene.name)["checkpoints"]] == ["one", "two"]
    assert scene.name in [vm["name"] for vm in fixed("vms")]
    said = fixed.fails("checkpoint", scene.name, "--require", "crash", code=1)
    assert "cannot be written" in said
    assert "rebuild" not in said  # nothing is damaged


def test_a_log_that_is_gone(scene: Scene, command: Quiesce) -> None:
    """Broken: a catalog without its log, which SQLite makes anew, would count as damaged."""
    for path in file_of(scene).parent.glob("catalog.db-*"):
        path.unlink()
    assert [node["name"] for node in command("tree", scene.name)["checkpoints"]] == ["one", "two"]
