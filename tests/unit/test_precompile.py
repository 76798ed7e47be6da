"""agent/precompile.py, on the real archive and with this interpreter."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from quiesce.agent.precompile import precompile
from quiesce.guests import archive as agent_archive


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "quiesce-agent.pyz"
    path.write_bytes(agent_archive.build())
    return path


@pytest.fixture(scope="module")
def compiled(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "quiesce-agent.pyz"
    path.write_bytes(plain.read_bytes())
    archive = repr(str(path))
    ended = python(
        "-c",
        f"import sys; sys.path.insert(0, {archive}); from quiesce.agent import precompile; precompile.precompile({archive})",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return path


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As the guest's service runs it."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def loaded_from(path: Path, module: str) -> str:
    """The name of the file in the archive that a module is loaded from."""
    ended = python("-c", f"import sys; sys.path.insert(0, {str(path)!r}); import {module} as module; print(module.__file__)")
    assert ended.stderr == ""
    assert ended.stdout.startswith(str(path))
    return ended.stdout.strip().rpartition("/")[2]


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert len(set(archive.namelist())) == len(archive.namelist())
        return {name: archive.read(name) for name in archive.namelist()}


def test_all_that_was_there_still_is_and_each_module_is_compiled(plain, compiled):
    """Broken: an upgrade of the guest's Python would leave an agent without its source, or nothing would be faster."""
    before, after = contents(plain), contents(compiled)
    assert {name: content for name, content in after.items() if not name.endswith(".pyc")} == before
    modules = {name for name in before if name.endswith(".py")} - {"__main__.py"}
    assert {name for name in after if name.endswith(".pyc")} == {name + "c" for name in modules}


def test_it_is_still_a_script(compiled):
    """Broken: after its installation the agent would not start."""
    assert compiled.read_bytes().startswith(b"#!/usr/bin/python3\nPK")
    assert compiled.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in compiled.parent.iterdir()] == [compiled.name]


def test_it_still_starts(compiled):
    """Broken: as above."""
    ended = python(str(compiled), "--hook", "freeze")
    assert ended.returncode == 1
    assert "the agent does not answer" in ended.stderr


@pytest.mark.parametrize("module", ["quiesce.agent.deadman", "pg8000.native"])
def test_a_module_is_loaded_compiled(module, plain, compiled):
    """Broken: each conversation would compile its modules anew, which is most of the time it takes to answer."""
    name = module.rpartition(".")[2]
    assert loaded_from(plain, module) == f"{name}.py"
    assert loaded_from(compiled, module) == f"{name}.pyc"


def test_after_an_upgrade_of_python_the_source_is_loaded(plain, tmp_path, monkeypatch):
    """Broken: an upgrade of the guest's Python would silence its agent."""
    path = tmp_path / "quiesce-agent.pyz"
    path.write_bytes(plain.read_bytes())
    monkeypatch.setattr(importlib.util, "MAGIC_NUMBER", b"\x01\x02\r\n")
    precompile(str(path))
    assert contents(path)["quiesce/agent/deadman.pyc"].startswith(b"\x01\x02\r\n")
    assert loaded_from(path, "quiesce.agent.deadman") == "deadman.py"
    assert "the agent does not answer" in python(str(path), "--hook", "freeze").stderr


def test_a_failure_leaves_the_archive_as_it_was(tmp_path):
    """Broken: a full disk, or a Python too old for the source, would leave half an agent."""
    path = tmp_path / "quiesce-agent.pyz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("module.py", "this is no Python")
    before = path.read_bytes()
    with pytest.raises(SyntaxError):
        precompile(str(path))
    assert path.read_bytes() == before
