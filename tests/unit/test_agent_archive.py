"""guests/archive.py"""

from __future__ import annotations

import ast
import importlib.metadata
import io
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from quiesce.guests import archive as agent_archive
from quiesce.model.errors import RefusedError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def content() -> bytes:
    return agent_archive.build()


@pytest.fixture(scope="module")
def archive(content: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(content))


@pytest.fixture(scope="module")
def path(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("agent") / "quiesce-agent.pyz"
    file.write_bytes(content)
    return file


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The interpreter as bare as in a guest: no packages, no environment, warnings as errors."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def test_the_same_sources_make_the_same_file(content):
    """Broken: every install would look like an upgrade, and nobody could check what runs in the guest."""
    assert agent_archive.build() == content


def test_it_is_a_script_for_the_guests_own_python(content):
    """Broken: the service could not start it."""
    assert content.startswith(b"#!/usr/bin/python3\n")


def test_it_runs_alone(path):
    """Broken: the agent would need something that guests do not have."""
    ended = python(str(path), "--hook", "freeze")
    assert ended.returncode == 1
    assert "the agent does not answer" in ended.stderr


def test_all_it_imports_later_is_in_it(path):
    """Broken: the first conversation, or the first database, would end with an ImportError in the guest."""
    code = (
        f"import sys; sys.path.insert(0, {str(path)!r})\n"
        "import importlib, quiesce.agent.conversation, quiesce.agent.service, quiesce.agent.install, quiesce.testing.writer\n"
        "from quiesce.agent.writers import registry\n"
        "for name in (*registry.BUILT_IN, 'declared', 'external', 'scripts'):\n"
        "    importlib.import_module('quiesce.agent.writers.' + name)\n"
        "from pg8000.native import Connection\n"
        "import pymysql\n"
        "outside = [name for name, module in sys.modules.items()"
        "  if name.split('.')[0] in ('quiesce', 'pg8000', 'pymysql', 'scramp', 'asn1crypto', 'dateutil', 'six')"
        "  and '.pyz' not in str(getattr(module, '__file__', None) or '.pyz')]\n"
        "print(outside, 'anyio' in sys.modules)"
    )
    ended = python("-c", code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[] False\n", "")


def test_our_own_files_are_python_3_9(archive):
    """Broken: the agent would not start in older guests."""
    own = [name for name in archive.namelist() if name.startswith("quiesce/") or name == "__main__.py"]
    assert "quiesce/agent/deadman.py" in own
    for name in own:
        ast.parse(archive.read(name), name, feature_version=(3, 9))


def test_it_carries_the_guests_side_and_nothing_of_the_hosts(archive):
    """Broken: the guest would get code, and weight, that is none of its business."""
    rooms = {name.split("/")[1] for name in archive.namelist() if name.startswith("quiesce/")}
    assert rooms == {"__init__.py", "agent", "codec.py", "wire", "model", "writer.py", "testing"}
    models = {name for name in archive.namelist() if name.startswith("quiesce/model/")}
    assert {name.rpartition("/")[2] for name in models} == {"__init__.py", "grades.py", "reports.py", "starts.py"}
    assert all(name.endswith((".py", "/METADATA")) for name in archive.namelist())
    assert len(set(archive.namelist())) == len(archive.namelist())


def test_it_is_small_enough_to_push_through_the_guest_agent(content):
    """Broken: installing would take minutes."""
    assert len(content) < 2 * 2**20


def test_what_it_carries_is_locked_by_hashes():
    """Broken: whoever controls an index could have code run as root in every guest."""
    lock = (ROOT / "src/quiesce/guests/carried.lock").read_text()
    assert "://" not in lock
    assert "--require-hashes" in lock
    pinned = dict(re.findall(r"^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$", lock, re.MULTILINE))
    assert pinned == agent_archive.locked()
    tops = {
        name
        for name, distributions in importlib.metadata.packages_distributions().items()
        if {each.lower() for each in distributions} & pinned.keys()
    }
    assert tops - {"_pytest"} >= set(agent_archive.CARRIED)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {f"{name}=={version}" for name, version in pinned.items()} <= set(wanted)
    assert "carried.lock" in (ROOT / "script/bootstrap").read_text()


def test_another_version_than_the_locked_one_is_carried_into_no_guest(monkeypatch):
    """Broken: a library that nobody tried, or with a known hole, would run as root in every guest."""
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.31.4")
    with pytest.raises(RefusedError, match=r"asn1crypto 1\.5\.1; 1\.31\.4 is installed"):
        agent_archive.build()


def test_the_client_of_postgresql_has_no_known_hole():
    """Broken: CVE-2025-61385: a text in a list ends its literal."""
    from pg8000.native import literal

    assert literal(["x'; DROP TABLE t; --"]).count("'") % 2 == 0
    assert literal(["'"]) == "'{''}'"
