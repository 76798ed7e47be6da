"""The cache of things that take long to make. The name of an entry contains a hash of what the entry was made from."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAMP = "stamp"
"""Name of the file with the sizes and times that an entry's disks had when it was made."""


def root() -> Path:
    """The lab's directory. QEMU's own user must be able to walk to it, so it is never below a home directory."""
    path = Path(os.environ.get("QUIESCE_LAB_DIR", "/var/cache/quiesce-lab"))
    path.mkdir(parents=True, exist_ok=True, mode=0o755)
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock file during the block; the kernel frees the lock of a dead holder."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def entry(path: Path) -> Iterator[Path | None]:
    """Yields a directory to fill if the entry `path` does not exist yet; None if it exists.

    The entry appears complete or not at all: it is filled under another name and renamed. If somebody has written to an entry's
    disks since, for example by a block commit into one image too many, the entry is made anew, and so are the entries that were
    made from it. So is one whose base was removed, as by `prune` in another worktree, or made anew since.
    """
    with locked(path.parent / f".{path.name}.lock"):
        if path.is_dir():
            if (path / STAMP).is_file() and (path / STAMP).read_text() == _stamp(path) and _has_its_base(path):
                yield None
                return
            print(f"lab: {path.name}, or what it was made from, is another one; making it anew", file=sys.stderr, flush=True)
            shutil.rmtree(path)
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o755)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        (partial / STAMP).write_text(_stamp(partial))
        partial.rename(path)


def _stamp(directory: Path) -> str:
    found = ((file.name, file.stat()) for file in sorted(directory.glob("*.qcow2")))
    return "".join(f"{name} {status.st_size} {status.st_mtime_ns}\n" for name, status in found)


def _has_its_base(directory: Path) -> bool:
    """Whether what its disks are overlays of is there, and older than they are."""
    for disk in directory.glob("*.qcow2"):
        words = ["qemu-img", "info", "-U", "--output=json", str(disk)]
        told = subprocess.run(words, check=True, capture_output=True, timeout=60)
        base = json.loads(told.stdout).get("full-backing-filename")
        if base and not (Path(base).is_file() and Path(base).stat().st_mtime_ns <= disk.stat().st_mtime_ns):
            return False
    return True


def prune(pattern: Path, keep: int) -> None:
    """Removes the entries that match the pattern, except the `keep` newest ones."""
    entries = sorted(
        (path for path in pattern.parent.glob(pattern.name) if path.is_dir()), key=lambda path: path.stat().st_mtime
    )
    for path in entries[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
