"""Locks across processes: one operation at a time works on a VM."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quiesce.model.errors import BusyError


@contextmanager
def hold(directory: Path, name: str, what: str) -> Iterator[None]:
    """Holds the lock `name` during the block; the kernel frees it when the holder dies. `what` describes the holder to others.
    Raises BusyError, naming the holder, if another process holds the lock."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / f"{name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another operation is under way: {_holder(file.name)}", hint="wait until it has ended") from None
        file.seek(0)
        file.truncate()
        json.dump({"process": os.getpid(), "what": what}, file)
        file.flush()
        yield
        file.truncate(0)


@contextmanager
def wait(directory: Path, name: str) -> Iterator[None]:
    """Waits until the lock `name` is free, and holds it during the block."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / f"{name}.lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _holder(path: str) -> str:
    try:
        holder = json.loads(Path(path).read_text())
        return f"{holder['what']} (process {holder['process']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "its lock file does not tell which one"
