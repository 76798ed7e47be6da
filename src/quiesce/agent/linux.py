"""Kernel calls that Python 3.9 does not have."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FIFREEZE = 0xC0045877  # _IOWR('X', 119, int), linux/fs.h
FITHAW = 0xC0045878  # _IOWR('X', 120, int)

_MCL_CURRENT, _MCL_FUTURE = 1, 2
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(fd: int) -> None:
    """Writes out all dirty pages of the filesystem that `fd` is on. Raises OSError."""
    _check(_libc.syncfs(fd))


def lock_memory() -> None:
    """Keeps all memory of this process, now and later, in RAM. Raises OSError."""
    _check(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE))


def run_first() -> None:
    """Has this thread run before all others of the machine that are not real-time; programs that it starts do not inherit
    that. The kernel leaves the others 5 % of the time (sched_rt_runtime_us). Does nothing where it is not allowed, as in a
    container."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def run_among_others() -> None:
    """Ends `run_first`. Idempotent."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def die_with_service() -> None:
    """Has the kernel kill this process when its parent dies. To be called again after every change of user, when the kernel
    forgets it (prctl(2), PR_SET_PDEATHSIG). Raises OSError."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def limit_memory(size: int) -> None:
    """Of this process and its children, which can take the limit back (`limit_no_memory`): above it they get MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def limit_no_memory() -> None:
    """For a program that this process starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def prepare_program() -> None:
    """What a program that the agent starts is to have (`preexec_fn`): it dies with the agent, and has all the memory."""
    die_with_service()
    limit_no_memory()


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Runs the block as another user, with that user's groups and no others. Raises OSError."""
    if uid == os.geteuid():
        yield
        return
    group, groups = _groups_of(uid)
    own = os.getgroups()
    os.setgroups(groups)
    os.setegid(group)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(own)
        die_with_service()


@functools.cache
def _groups_of(uid: int) -> tuple[int, list[int]]:
    """Looked up once for each user, before the window: the answer may come from a directory server that will be held."""
    import pwd

    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return uid, []
    return entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
