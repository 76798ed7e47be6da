"""Reads files that others than root may have made or can replace: the one way in which the agent opens an application's file.

The name is looked up as the application's user, so that a link leads only to what this user could read himself. Only a regular
file is opened, never a device or a pipe, and only so many bytes are read.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Optional

from quiesce.agent import linux, looks

_CHUNK = 1 << 20


def read_bytes(path: str, limit: int, uid: Optional[int] = None, *, offset: int = 0, links: bool = False) -> bytes:
    """At most `limit` bytes, from `offset` on. `uid`: the user as whom to look; None: the owner of the file, or link, of this
    name. `links`: whether the last name may be a link. Raises OSError, as NotAnsweringError."""
    return looks.at(path, _read, path, limit, uid, offset, links)


def read_text(path: str, limit: int = 64 * 1024, uid: Optional[int] = None, *, links: bool = False) -> str:
    """As `read_bytes`."""
    return read_bytes(path, limit, uid, links=links).decode(errors="replace")


def open_regular(path: str, uid: Optional[int] = None, *, links: bool = False) -> int:
    """A descriptor for reading, as in `read_bytes`. Raises OSError."""
    with linux.as_user(os.lstat(path).st_uid if uid is None else uid):
        # O_PATH opens nothing: neither does it wait for a pipe's other end, nor does a device notice.
        found = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW))
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(found)


def _read(path: str, limit: int, uid: Optional[int], offset: int, links: bool) -> bytes:
    descriptor = open_regular(path, uid, links=links)
    try:
        found = b""
        while len(found) < limit and (data := os.pread(descriptor, min(limit - len(found), _CHUNK), offset + len(found))):
            found += data
        return found
    finally:
        os.close(descriptor)
