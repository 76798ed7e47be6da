"""The worker's tasks that make, change and remove files: never through a link that somebody put there, and never into a file
that somebody else made."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from quiesce.local.opening import ACCESS_LIST, CHUNK, Progress, open_directory, open_file, open_own

Rights = tuple[int, int, int, bytes]
"""Owner, group (-1: whoever makes the file), mode, and the access control list or nothing."""


def _make_directory(path: str) -> None:
    """It, and those above it. Does nothing if it is there."""
    os.makedirs(path, mode=0o711, exist_ok=True)


def _remove_directory(path: str) -> None:
    """If it is there and empty."""
    with suppress(OSError):
        os.rmdir(path)


def _remove(path: str) -> None:
    """Does nothing if it is not there. Fails if there is not even its directory: it may not be mounted."""
    directory, name = os.path.split(path)
    with open_directory(directory) as place, suppress(FileNotFoundError):
        os.unlink(name, dir_fd=place)


def _set_aside(path: str, destination: str) -> bool:
    """Moves a file into a directory of ours beside it, which is made. Returns False, and moves nothing, if others may write to
    that directory."""
    (source, name), (target, new) = os.path.split(path), os.path.split(destination)
    with suppress(FileExistsError):
        os.mkdir(target, 0o700)
    with open_directory(source) as place, open_own(target) as own:
        if own is None:
            return False
        os.rename(name, new, src_dir_fd=place, dst_dir_fd=own)
        os.fsync(own)
        os.fsync(place)
    return True


def _remove_own(path: str) -> bool:
    """Removes a file from a directory of ours, and the directory if it is empty then. Returns False, and removes nothing, if
    others may write to the directory."""
    directory, name = os.path.split(path)
    with open_own(directory) as own:
        if own is None:
            return False
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=own)
    _remove_directory(directory)
    return True


def _write(path: str, content: bytes, rights: Rights | None) -> None:
    """Makes or replaces a file, at once: nobody ever sees a part of it. What is there is replaced, also a link."""
    directory, name = os.path.split(path)
    new = f".{name[:200]}.{os.urandom(6).hex()}.new"
    with open_directory(directory) as place:
        try:
            with _new(place, new) as file:
                if rights:
                    _give(file.fileno(), rights)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, name, src_dir_fd=place, dst_dir_fd=place)
        except BaseException:
            _unlink(place, new)
            raise


def _create(path: str, content: bytes) -> None:
    """Makes a file; fails if there is anything of this name."""
    directory, name = os.path.split(path)
    with open_directory(directory) as place, _new(place, name) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            _unlink(place, name)
            raise


def _put(path: str, source: str, rights: Rights | None) -> None:
    """Makes a file with the content and the holes of `source`, and with these rights, or else those of `source`; fails if there
    is anything of this name."""
    directory, name = os.path.split(path)
    with open_file(source) as content, open_directory(directory) as place, _new(place, name) as file:
        try:
            found = os.fstat(content.fileno())
            _give(file.fileno(), rights or (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), b""))
            os.ftruncate(file.fileno(), found.st_size)
            for begin, end in _data(content.fileno()):
                while begin < end:
                    piece = os.pread(content.fileno(), min(CHUNK, end - begin), begin)
                    if not piece:
                        break
                    begin += os.pwrite(file.fileno(), piece, begin)
            os.fsync(file.fileno())
        except BaseException:
            _unlink(place, name)
            raise


def _data(descriptor: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each part of the file that is no hole."""
    end = 0
    while True:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: there is no more
            return
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, end


def _copy(path: str, source: str, size: int, start: int, progress: Progress) -> tuple[int, str, bytes]:
    """Makes a file of the first `size` bytes. Returns how many there were, their SHA-256, and the first `start` of them."""
    import hashlib

    directory, name = os.path.split(path)
    digest, done, first = hashlib.sha256(), 0, b""
    with open_file(source) as content, open_directory(directory) as place, _new(place, name) as file:
        try:
            if size:
                os.posix_fallocate(file.fileno(), 0, min(size, os.fstat(content.fileno()).st_size) or 1)
            while done < size and (piece := content.read(min(CHUNK, size - done))):
                file.write(piece)
                digest.update(piece)
                first += piece[: start - len(first)]
                done += len(piece)
                progress(done, size)
            file.flush()
            os.ftruncate(file.fileno(), done)
            os.fsync(file.fileno())
        except BaseException:
            _unlink(place, name)
            raise
    return done, digest.hexdigest(), first


def _new(place: int, name: str) -> BinaryIO:
    """A new file, never one that is there, nor one that a link leads to."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(name, flags, 0o600, dir_fd=place), "wb")


def _give(descriptor: int, rights: Rights) -> None:
    owner, group, mode, access_list = rights
    os.fchown(descriptor, owner, group)
    os.fchmod(descriptor, mode)
    if access_list:
        os.setxattr(descriptor, ACCESS_LIST, access_list)


def _unlink(place: int, name: str) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=place)


TASKS: dict[str, Callable[..., Any]] = {
    "make_directory": _make_directory,
    "remove_directory": _remove_directory,
    "remove": _remove,
    "set_aside": _set_aside,
    "remove_own": _remove_own,
    "write": _write,
    "create": _create,
    "put": _put,
}
LONG: dict[str, Callable[..., Any]] = {"copy": _copy}
