"""The quarantine: the directory `quiesce-quarantine` beside the images, on the same filesystem. `doctor` moves files into it
instead of removing them. The name of a file in it says when it came, so the quarantine needs no record:

    /images/db1.vda.0123456789ab.qcow2   ->   /images/quiesce-quarantine/20261129T021500.000000Z.db1.vda.0123456789ab.qcow2

libvirt cannot rename a file, so this works on this machine only. Images often lie where another user may write: the quarantine
is a directory of root's, or of this user's, that nobody else can write to, and no link is followed."""

from __future__ import annotations

import errno
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from quiesce.local.client import files
from quiesce.model.errors import HypervisorError, NotFoundError, RefusedError, SilentStorageError
from quiesce.storage.port import Aside

NAME = "quiesce-quarantine"
_FILE = re.compile(r"([0-9]{8}T[0-9]{6}\.[0-9]{6})Z\.(.+)", re.DOTALL)
_TIME = "%Y%m%dT%H%M%S.%f"


def path_in_quarantine(path: str, now: datetime) -> str:
    """Where the file goes that is moved into the quarantine now."""
    place, name = posixpath.split(path)
    return posixpath.join(place, NAME, f"{now.astimezone(UTC).strftime(_TIME)}Z.{name}")


def read_path(path: str) -> Aside | None:
    """What the path of a file in a quarantine says; None if it is not one of `path_in_quarantine`."""
    quarantine, name = posixpath.split(path)
    place, last = posixpath.split(quarantine)
    match = _FILE.fullmatch(name)
    if not match or last != NAME:
        return None
    try:
        since = datetime.strptime(match[1], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return Aside(path, posixpath.join(place, match[2]), since)


def isolate(path: str, now: datetime) -> Aside:
    """Moves a file of this machine into the quarantine beside it. Raises NotFoundError; RefusedError if others can write to the
    quarantine; HypervisorError if it cannot be made."""
    destination = path_in_quarantine(path, now)
    try:
        with _ours(posixpath.dirname(destination)):
            moved = files().one("set_aside", path, destination)
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path}") from None
    except OSError as error:
        raise HypervisorError(f"moving {path} to {destination}: {error.strerror}") from error
    found = read_path(destination)
    assert found is not None  # the name is ours
    _require(moved, destination)
    return found


def files_in(place: str) -> list[Aside]:
    """The files in the quarantine of a directory of this machine, oldest first."""
    try:
        names = files().one("names_in_own", posixpath.join(place, NAME))
    except (OSError, SilentStorageError):  # a quarantine that is not ours has no file of ours
        return []
    found = [aside for name in names if (aside := read_path(posixpath.join(place, NAME, name)))]
    return sorted(found, key=lambda aside: (aside.since, aside.path))


def drop(aside: Aside) -> None:
    """Removes a file from the quarantine, and the quarantine if it is empty then."""
    try:
        with _ours(posixpath.dirname(aside.path)):
            removed = files().one("remove_own", aside.path)
    except OSError as error:
        raise HypervisorError(f"removing {aside.path}: {error.strerror}") from error
    _require(removed, aside.path)


def _require(done: bool, path: str) -> None:
    if not done:
        quarantine = posixpath.dirname(path)
        raise RefusedError(f"{quarantine} belongs to another user, or others may write to it, so nothing is moved there")


@contextmanager
def _ours(quarantine: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise RefusedError(f"{quarantine} is no directory, so nothing is moved there", hint="remove it") from error
        raise
