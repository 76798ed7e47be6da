"""lab/worst.py, by an unprivileged user, against the agent's own look at the machine. In a guest: tests/vm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import worst
from lab.standstill import within
from quiesce.agent import bounds, memory
from quiesce.agent.inventory import FilesystemList
from quiesce.agent.writers import declared, registry, scripts
from quiesce.agent.writers.base import deadline_in_ns
from quiesce.model.reports import WriterReport
from quiesce.wire.framing import MAX_LINE, to_line
from quiesce.wire.messages import Inventory
from quiesce.wire.schema import to_wire
from tests.unit.hostile import NOBODY

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else"), pytest.mark.timeout(300)]


@pytest.fixture
def at_work() -> Iterator[Path]:
    """The script, run by nobody: 60 processes and 20 servers."""
    program = Path(f"/tmp/worst-{os.getpid()}.py")
    program.write_text(Path(worst.__file__).read_text())
    program.chmod(0o644)
    place = Path(f"/tmp/worst-{os.getpid()}")
    words = [sys.executable, "-I", program, "--processes=60", "--servers=20", "--mounts=60", "--seconds=200", place]
    user = subprocess.Popen(words, user=NOBODY, group=NOBODY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert user.stdout
        assert user.stdout.readline() == b"at work\n"
        time.sleep(1)
        yield place
    finally:
        user.terminate()
        user.wait(30)
        user.stdout.close()
        program.unlink()
        shutil.rmtree(place, ignore_errors=True)


def _found() -> tuple[list[WriterReport], Inventory]:
    listed = FilesystemList()
    writers = registry.discover()
    for writer in writers:
        writer.identify(deadline_in_ns(30))
        writer.abort()
    reports = [writer.report() for writer in writers]
    return reports, Inventory(bounds.bounded_writers(reports), bounds.bounded_filesystems(listed.report))


def test_the_worst_that_a_user_can_do_takes_seconds_and_no_label_depends_on_it(at_work, tmp_path, monkeypatch):
    """Broken: any user of a guest could keep it from being backed up, or its applications from going on."""
    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(declared, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(scripts, "discover", lambda **_: [])
    with within(60):
        reports, told = _found()
    assert len(to_line({"id": 1, "result": to_wire(told)})) < MAX_LINE
    # Nobody runs in root's own control group here, so that his open files count; in a guest he has a session of his own.
    named = [each for each in reports if "worst" in f"{each.reason}" and "has the name of" in f"{each.reason}"]
    strangers = [each for each in reports if each.id.endswith(f"@{NOBODY}")]
    assert strangers
    assert not any(each.required for each in [*named, *strangers])
    assert not any(f"worst-{os.getpid()}/" in f"{each.data_directory}" for each in reports)
