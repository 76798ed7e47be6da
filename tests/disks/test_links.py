"""Small files beside images, in a directory in which another user may write: what he puts there is never written through."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.bare import directory
from lab.machine import URI
from quiesce.hypervisor.connection import Host
from quiesce.model.errors import QuiesceError
from quiesce.storage.files import FileStorage

NOBODY = 65534
TRIES = 40

SWAP = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.chdir(sys.argv[1])
print("ready", flush=True)
while True:
    try:
        for entry in os.scandir("."):
            if entry.name.endswith(".json") and entry.is_file(follow_symlinks=False):
                os.unlink(entry.name)
                os.symlink(sys.argv[2], entry.name)
    except OSError:
        pass
"""


@pytest.fixture
def theirs() -> Iterator[Path]:
    with directory() as path:
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o755)
        yield path


def test_a_link_put_where_a_file_was_just_made_is_not_written_through(theirs: Path) -> None:
    """Broken: the user that QEMU runs as could have root write a manifest over any file."""
    with directory() as own, contextlib.closing(Host(URI)) as host:
        secret = own / "secret"
        secret.write_text("root's own")
        secret.chmod(0o600)
        storage = FileStorage(host)
        swapping = subprocess.Popen([sys.executable, "-c", SWAP, theirs, secret], stdout=subprocess.PIPE)
        try:
            assert swapping.stdout is not None
            swapping.stdout.readline()
            for number in range(TRIES):
                with contextlib.suppress(QuiesceError):
                    storage.write(str(theirs / f"quiesce-{number % 3}.json"), b"{}" * 1000)
        finally:
            swapping.kill()
            swapping.communicate()
        assert secret.read_text() == "root's own"
        assert secret.stat().st_uid == 0
        assert not list(Path("/run/quiesce/staging").iterdir())


def test_a_link_that_is_there_is_replaced(theirs: Path) -> None:
    """Broken: a manifest would be written through the link; or nothing be written ever again."""
    with directory() as own, contextlib.closing(Host(URI)) as host:
        secret = own / "secret"
        secret.write_text("root's own")
        link = theirs / "quiesce-1.json"
        link.symlink_to(secret)
        FileStorage(host).write(str(link), b"{}")
        assert secret.read_text() == "root's own"
        assert not link.is_symlink()
        assert link.read_bytes() == b"{}"
