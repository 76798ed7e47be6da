"""What root may act upon: files and directories that nobody but root can write."""

from __future__ import annotations

import os
import stat


class UntrustedError(Exception):
    """A file that others than root could have written."""


def require_trusted(path: str) -> None:
    """The file, and every directory above it, belongs to root and can be written by nobody else.

    Raises UntrustedError with what to mend, OSError if it is not there.
    """
    path = os.path.abspath(path)
    require_roots_own(path, os.stat(path))
    for each in {os.path.realpath(path), path}:
        while each != "/":
            each = os.path.dirname(each)
            status = os.stat(each)
            sticky = status.st_mode & stat.S_ISVTX  # as /tmp: nobody can replace what is another's in it
            if status.st_uid != 0 or (status.st_mode & 0o022 and not sticky):
                raise UntrustedError(f"{each} can be written by others than root: chown root {each}; chmod go-w {each}")


def require_roots_own(path: str, status: os.stat_result) -> None:
    """Raises UntrustedError unless the file of this status belongs to root and can be written by nobody else."""
    if status.st_uid != 0 or status.st_mode & 0o022:
        raise UntrustedError(f"{path} can be written by others than root: chown root {path}; chmod go-w {path}")
