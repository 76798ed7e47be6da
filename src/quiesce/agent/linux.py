"""Kernel calls that Python 3.9 does not have."""

from __future__ import annotations

import ctypes
import os

FIFREEZE = 0xC0045877  # _IOWR('X', 119, int), linux/fs.h
FITHAW = 0xC0045878  # _IOWR('X', 120, int)

_MCL_CURRENT, _MCL_FUTURE = 1, 2
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(fd: int) -> None:
    """Writes out everything dirty of the filesystem `fd` is on. Raises OSError."""
    _check(_libc.syncfs(fd))


def lock_memory() -> None:
    """Keeps this process out of swap and page-ins, now and later. Raises OSError."""
    _check(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE))


def die_with_parent(signal_number: int) -> None:
    """This process gets the signal when its parent dies. Raises OSError."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
