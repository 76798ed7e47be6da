"""How the worker opens files and directories."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

CHUNK = 1 << 20
ACCESS_LIST = "system.posix_acl_access"
"""The extended attribute that the kernel shows a POSIX access control list as (acl(5))."""
Progress = Callable[[int, int], None]
"""Called with what is done, and what there is in all. Each call is a sign of life."""


@contextmanager
def open_directory(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_own(path: str) -> Iterator[int | None]:
    """A directory of root's, or of this user's, that nobody else can write to; None for another one. No link is followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        yield descriptor if found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022 else None
    finally:
        os.close(descriptor)


def open_file(path: str) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", path)
    return os.fdopen(descriptor, "rb")
