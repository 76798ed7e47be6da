"""Tells which files root may act upon: those that nobody but root can write."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator


class UntrustedError(Exception):
    """A file that others than root could have written."""


def require_trusted(path: str) -> None:
    """Checks that the file, and every directory and symbolic link on the way to it, is root's and writable by nobody else.

    Raises UntrustedError, whose message tells how to mend it, and OSError if there is no such file.
    """
    path = os.path.abspath(path)
    require_roots_own(path, os.stat(path))
    for each in _on_the_way(path):
        status = os.lstat(each)
        if stat.S_ISLNK(status.st_mode):
            if status.st_uid != 0:
                raise UntrustedError(f"the link {each} can be changed by others than root: chown -h root {each}")
        # In a sticky directory, as /tmp, nobody can replace another user's files.
        elif status.st_uid != 0 or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
            raise UntrustedError(f"{each} can be written by others than root: chown root {each}; chmod go-w {each}")


def require_roots_own(path: str, status: os.stat_result) -> None:
    """Raises UntrustedError unless the file of this status belongs to root and can be written by nobody else."""
    if status.st_uid != 0 or status.st_mode & 0o022:
        raise UntrustedError(f"{path} can be written by others than root: chown root {path}; chmod go-w {path}")


def _on_the_way(path: str) -> Iterator[str]:
    """The directories in which a name is looked up until the file is reached, and the symbolic links among the names."""
    here, names = "/", path.split("/")
    while names:
        name = names.pop(0)
        if name == "..":
            here = os.path.dirname(here)
        elif name not in ("", "."):
            yield here
            found = os.path.join(here, name)
            if os.path.islink(found):
                yield found
                target = os.readlink(found)
                here, names = "/" if target.startswith("/") else here, [*target.split("/"), *names]
            else:
                here = found
