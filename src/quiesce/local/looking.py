"""The worker's tasks that change nothing. Each may hang."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from quiesce.local import halves
from quiesce.local.headers import GLANCE, RAW, START, Header, header, names_backing
from quiesce.local.opening import ACCESS_LIST, CHUNK, Progress, open_directory, open_file, open_own

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
SIGN_EVERY = 200
"""Files of a directory between two signs of life."""


def _follow(path: str) -> tuple[str, bool, tuple[int, int] | None]:
    """Where the path leads if it is a symbolic link itself, or else the path; whether a file is there; and, if the file has
    several names, its device and inode."""
    path = path.rstrip("/") or "/"
    found = None
    with suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            path, found = os.path.realpath(path), None
            found = os.stat(path)
    if found is None or not stat.S_ISREG(found.st_mode):
        return path, False, None
    return path, True, (found.st_dev, found.st_ino) if found.st_nlink > 1 else None


def _spell(directory: str) -> tuple[str, tuple[int, int] | None]:
    """The directory without symbolic links, and its device and inode if it exists."""
    real = os.path.realpath(directory)
    try:
        found = os.stat(real)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return real, None
    return real, (found.st_dev, found.st_ino)


def _is_here(path: str, directory: bool) -> bool:
    """Whether it is there, and a directory if it is to be one; also if this user may not look: libvirt may."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode) or not directory
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _describe(directory: str, names: list[str]) -> list[tuple[Any, ...] | None]:
    """Each of these files as `_described`; None for one that is not there. Fails if the directory cannot be read."""
    with open_directory(directory) as place:
        return [_described(place, name) for name in names]


def _listing(directory: str, progress: Progress) -> list[tuple[str, tuple[Any, ...]]]:
    """Everything in a directory that has a name in UTF-8: nothing of quiesce's has another. Of what is no file, such as a link
    or a directory, the name alone: it may lead to another storage."""
    found = []
    with open_directory(directory) as place, os.scandir(place) as entries:
        for entry in entries:
            if not _in_utf8(entry.name):
                continue
            described: tuple[Any, ...] | None = (0, 0, "", "", "", *RAW)
            if entry.is_file(follow_symlinks=False):
                try:
                    described = _described(place, entry.name)
                except OSError:  # nobody may read it
                    continue
            if described:
                found.append((entry.name, described))
            if len(found) % SIGN_EVERY == 0:
                progress(len(found), 0)
    return found


def _names(directory: str, prefix: str, suffix: str) -> list[str]:
    with open_directory(directory) as place:
        return [name for name in os.listdir(place) if name.startswith(prefix) and name.endswith(suffix) and _in_utf8(name)]


_Below = tuple[str, bool]
"""The backing file of an image, as its header names it, and whether the header says that it is raw."""
_known: dict[str, dict[str, tuple[int, _Below | None]]] = {}
"""By directory, inode and backing file of each image that `overlays` has read."""


def _overlays(directory: str, again: bool, progress: Progress) -> tuple[list[tuple[_Below, list[str]]], list[str]]:
    """By backing file, the images in the directory that have one; and which overlays in it may have another name: symbolic
    links, and files with several names. With `again`, only files that are new since the last time are opened."""
    known, found = _known.get(directory, {}) if again else {}, {}
    new: dict[str, int] = {}
    links: list[str] = []
    with open_directory(directory) as place, os.scandir(place) as entries:
        for number, entry in enumerate(entries):
            if number % SIGN_EVERY == 0:
                progress(number, 0)
            name, inode = entry.name, entry.inode()
            if name in known and known[name][0] == inode:
                found[name] = known[name]
            elif not _in_utf8(name):
                continue
            elif entry.is_file(follow_symlinks=False):
                new[name] = inode
            elif entry.is_symlink():
                links.append(name)
        glances = halves.each(list(new), lambda names, tell: _glances(place, names, tell), progress)
    for (name, inode), (several, below) in zip(new.items(), glances, strict=True):
        if several:
            links.append(name)
        else:
            found[name] = (inode, below)
    _known[directory] = found
    by_backing: dict[_Below, list[str]] = {}
    for name, (_, below) in found.items():
        if below:
            by_backing.setdefault(below, []).append(name)
    return list(by_backing.items()), links


def _glances(place: int, names: Sequence[str], progress: Progress) -> list[tuple[bool, _Below | None]]:
    found = []
    parsed: dict[bytes, _Below | None] = {}
    for name in names:
        found.append(_glance(place, name, parsed))
        if len(found) % SIGN_EVERY == 0:
            progress(len(found), 0)
    return found


def _glance(place: int, name: str, parsed: dict[bytes, _Below | None]) -> tuple[bool, _Below | None]:
    """Whether the file may be an overlay that has several names, or else its backing file. There may be tens of thousands of
    files, so nothing is done here that most of them do not need. `parsed`: what earlier headers say; clones of one template
    begin with the same bytes."""
    try:
        descriptor = os.open(name, _READ, dir_fd=place)
    except OSError:  # it is gone, or nobody may read it
        with suppress(OSError):
            return os.stat(name, dir_fd=place, follow_symlinks=False).st_nlink > 1, None
        return False, None
    try:
        return _seen(descriptor, parsed)
    except OSError:
        return False, None
    finally:
        os.close(descriptor)


def _seen(descriptor: int, parsed: dict[bytes, _Below | None]) -> tuple[bool, _Below | None]:
    start = os.pread(descriptor, GLANCE, 0)
    if start[:3] not in (b"QFI", b"QED"):  # no other format that we know has a backing file
        return False, None
    if not names_backing(start):
        below = _backing(_read_header(descriptor))
    elif start in parsed:
        below = parsed[start]
    else:
        below = parsed[start] = _backing(header(start, _nothing_more))
    if below and os.fstat(descriptor).st_nlink > 1:
        return True, None
    return False, below


def _nothing_more(_offset: int, _length: int) -> bytes:
    return b""


def _backing_files(directory: str, names: list[str]) -> list[_Below | None]:
    """Of each of these images; None if it has no backing file or cannot be read."""
    with open_directory(directory) as place:
        return [_below(place, name) for name in names]


def _below(place: int, name: str) -> _Below | None:
    try:
        with _opened(place, name) as descriptor:
            return _backing(_header(descriptor))
    except OSError:  # it is gone, or nobody may read it
        return None


def _backing(found: Header) -> _Below | None:
    _, _, backing, format, _ = found
    return (backing, format == "raw") if backing else None


def _format(path: str) -> str:
    """What a file or block device is by its first bytes."""
    with _opened(None, path) as descriptor:
        return _header(descriptor)[0]


@contextmanager
def _opened(place: int | None, name: str) -> Iterator[int]:
    descriptor = os.open(name, _READ, dir_fd=place)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _header(descriptor: int) -> Header:
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        return RAW
    return _read_header(descriptor)


def _read_header(descriptor: int) -> Header:
    return header(os.pread(descriptor, START, 0), lambda offset, length: os.pread(descriptor, length, offset))


def _described(place: int, name: str) -> tuple[Any, ...] | None:
    """(length, bytes allocated, time of the last write, time of the inode's last change, who may use it), and its header."""
    try:
        found = os.stat(name, dir_fd=place)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            return None
        raise
    read, label = RAW, ""
    if stat.S_ISREG(found.st_mode):
        with _opened(place, name) as descriptor:
            read, label = _header(descriptor), _label(descriptor)
    access = f"{found.st_uid} {found.st_gid} 0{found.st_mode & 0o777:o} {label}".rstrip()  # as libvirt writes them
    return found.st_size, found.st_blocks * 512, _time(found.st_mtime_ns), _time(found.st_ctime_ns), access, *read


def _label(descriptor: int) -> str:
    with suppress(OSError):  # it has none
        return os.fsdecode(os.getxattr(descriptor, "security.selinux")).rstrip("\0")
    return ""


def _time(nanoseconds: int) -> str:
    """As libvirt writes it."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    return f"{seconds}.{fraction:09d}" if fraction else str(seconds)


def _in_utf8(name: str) -> bool:
    return name.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in name)


def _room(directory: str) -> tuple[int, int, bool]:
    """(bytes free, bytes in all, whether it is mounted read-only); as libvirt counts, blocks that are reserved for root are
    free."""
    found = os.statvfs(directory)
    return found.f_bfree * found.f_frsize, found.f_blocks * found.f_frsize, bool(found.f_flag & os.ST_RDONLY)


def _read(path: str, most: int) -> bytes:
    """At most so many bytes from the beginning."""
    with open_file(path) as file:
        return file.read(most)


def _read_each(directory: str, names: list[str], most: int) -> list[bytes | None]:
    """As `read`, of several files; None for one that is not there or cannot be read."""
    found: list[bytes | None] = []
    for name in names:
        try:
            found.append(_read(f"{directory}/{name}", most))
        except OSError:
            found.append(None)
    return found


def _sha256(path: str, progress: Progress) -> str:
    import hashlib

    digest, done, size = hashlib.sha256(), 0, os.stat(path).st_size
    with open_file(path) as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            done += len(piece)
            progress(done, size)
    return digest.hexdigest()


def _length(path: str) -> int:
    with open_file(path) as file:
        return os.fstat(file.fileno()).st_size


def _read_at(path: str, offset: int, length: int) -> bytes:
    """So many bytes; fewer at the end of the file."""
    with open_file(path) as file:
        return os.pread(file.fileno(), length, offset)


def _data_after(path: str, offset: int) -> tuple[int, bytes]:
    """Where the next part of the file that is no hole begins, at the offset or after it, and a piece of it; the end of the
    file, and nothing, if there is none."""
    with open_file(path) as file:
        descriptor = file.fileno()
        try:
            begin = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: there is no more
            return os.fstat(descriptor).st_size, b""
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        return begin, os.pread(descriptor, min(CHUNK, end - begin), begin)


def _rights(path: str) -> tuple[int, int, int]:
    """Owner, group and mode of a file, a directory or a device."""
    found = os.stat(path)
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def _access_list(path: str) -> bytes:
    """The POSIX access control list of a file, as the kernel keeps it; empty if it has none."""
    try:
        return os.getxattr(path, ACCESS_LIST)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return b""
        raise


def _names_in_own(directory: str) -> list[str]:
    """The names in a directory of ours; none if others may write to it."""
    with open_own(directory) as place:
        return os.listdir(place) if place is not None else []


TASKS: dict[str, Callable[..., Any]] = {
    "follow": _follow,
    "spell": _spell,
    "is_here": _is_here,
    "describe": _describe,
    "names": _names,
    "names_in_own": _names_in_own,
    "backing_files": _backing_files,
    "format": _format,
    "room": _room,
    "rights": _rights,
    "access_list": _access_list,
    "length": _length,
    "read": _read,
    "read_at": _read_at,
    "read_each": _read_each,
    "data_after": _data_after,
}
LONG: dict[str, Callable[..., Any]] = {"listing": _listing, "overlays": _overlays, "sha256": _sha256}
