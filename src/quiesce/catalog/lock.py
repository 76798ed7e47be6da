"""Locks across processes: one operation at a time works on a VM.

All lock files of quiesce are opened here: mode 0600, in a directory in which only this user, or root, can make files. So no
other user can hold one, or put a link in its place."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from quiesce.model.errors import BusyError, NoSpaceError, QuiesceError, RefusedError

PATIENCE_S = 600.0
"""Longest wait for a lock, in seconds. A checksum of a large image may hold one that others wait for."""
PAUSE_S = 0.02
RUN = Path("/run/quiesce")
"""The lock files of root's processes that belong to no SQLite file."""
_MOST = 4096


def directory_for_this_user() -> Path:
    """The directory of lock files that belong to no SQLite file. It is never one in which other users can make files, as
    /run/lock and /tmp are."""
    if os.geteuid() == 0:
        return RUN
    return Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".local/state") / "quiesce"


@contextmanager
def hold(directory: Path, name: str, what: str) -> Iterator[None]:
    """Holds the lock `name` during the block; the kernel frees it when the holder dies. `what` describes the holder to others.
    Raises BusyError, naming the holder, if another process holds the lock; RefusedError or NoSpaceError if there can be no lock
    file."""
    with lock_file(directory, name) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another operation is under way: {_holder(file)}", hint="wait until it has ended") from None
        os.ftruncate(file.fileno(), 0)
        with suppress(OSError):  # the disk is full: the lock is held all the same
            os.pwrite(file.fileno(), json.dumps({"process": os.getpid(), "what": what}).encode(), 0)
        yield
        os.ftruncate(file.fileno(), 0)


@contextmanager
def wait(directory: Path, name: str) -> Iterator[None]:
    """Waits until the lock `name` is free, and holds it during the block. Raises BusyError, naming the holder, after
    PATIENCE_S."""
    with lock_file(directory, name) as file:
        acquire(file)
        yield


def acquire(file: IO[str], mode: int = fcntl.LOCK_EX) -> None:
    """Waits for a lock of this mode (LOCK_EX or LOCK_SH). Raises BusyError, naming the holder, after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BusyError(
                    f"{file.name} has been locked for {PATIENCE_S:g} s: {_holder(file)}", hint="wait until it has ended"
                ) from None
            time.sleep(PAUSE_S)
        else:
            return


@contextmanager
def lock_file(directory: Path, name: str) -> Iterator[IO[str]]:
    """The lock file `name` of the directory, which is made if it does not exist. Raises RefusedError if another user could have
    made, or could replace, the file."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        inside = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_lock(directory, error) from error
    try:
        _require_ours(directory, os.fstat(inside))
        path = directory / f"{name}.lock"
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path.name, flags, 0o600, dir_fd=inside)
        except OSError as error:
            raise _no_lock(path, error) from error
    finally:
        os.close(inside)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise RefusedError(f"the lock file {path}, which is used for locks, is no regular file")
    with open(path, "r+", opener=lambda _path, _flags: descriptor) as file:
        _require_ours(path, found)
        yield file


def _no_lock(path: Path, error: OSError) -> QuiesceError:
    kind = NoSpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else RefusedError
    return kind(f"the lock file {path} cannot be opened: {error.strerror}")


def _require_ours(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise RefusedError(
            f"{path}, which is used for locks, belongs to another user, or others may write to it",
            hint="its owner must be you or root, and nobody else may write to it",
        )
    if stat.S_ISREG(found.st_mode) and found.st_mode & 0o077 and found.st_uid == os.geteuid():
        with suppress(OSError):
            path.chmod(0o600)


def _holder(file: IO[str]) -> str:
    """What the holder said of itself; otherwise, which processes have the file locked, by the kernel's account."""
    try:
        file.seek(0)
        holder = json.loads(file.read(_MOST))
        return f"{holder['what']} (process {holder['process']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return ", ".join(_lockers(os.fstat(file.fileno()))) or "its lock file does not tell which one"


def _lockers(found: os.stat_result) -> list[str]:
    """The processes that have the file locked, with their names: proc_locks(5)."""
    key = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    holders = []
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if "->" not in words and len(words) > 5 and words[5] == key and words[1] == "FLOCK" and words[4] != "0":
                name = ""
                with suppress(OSError):
                    name = f" ({Path(f'/proc/{words[4]}/comm').read_text().strip()})"
                holders.append(f"process {words[4]}{name}")
    return holders
