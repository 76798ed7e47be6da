"""The one spelling of each path of this machine: without `//`, `..` and symbolic links, the same through every bind mount of
its directory, and for every name (hard link) of a file."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

from quiesce.local.client import TaskFailed, files
from quiesce.model.errors import SilentStorageError


@dataclass(frozen=True)
class _Followed:
    path: str
    """Where the path leads if it is a symbolic link itself."""
    file: bool = False
    """Whether a file is there."""
    identity: tuple[int, int] | None = None
    """Device and inode, if the file has several names."""


class Spelling:
    """Remembers what it found, so that an image keeps its name during an operation."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}
        self._directories: dict[str, str] = {}
        self._spelled: dict[str, str] = {}
        self._first: dict[tuple[int, int], str] = {}
        """By device and inode, the first spelling of a directory, and of a file with several names."""

    def of(self, paths: Iterable[str], limit: float) -> dict[str, str]:
        """By path; without those on storages that do not answer within `limit` seconds. A device keeps its path: /dev/dm-3 may
        be another volume after a boot, /dev/vg/data is not."""
        wanted = list(paths)
        if new := [path for path in wanted if path not in self._spelled]:
            self._spell(new, limit)
        return {path: self._spelled[path] for path in wanted if path in self._spelled}

    def _spell(self, new: list[str], limit: float) -> None:
        self._follow(new, limit)
        known = [path for path in new if path in self._followed]
        devices = {path for path in known if self.is_device(path, limit)}
        self._spelled |= {path: path for path in devices}
        names = [path for path in known if path not in devices]
        self._look_at({posixpath.dirname(self._followed[path].path) for path in names}, limit)
        for path in names:
            followed = self._followed[path]
            directory, name = posixpath.split(followed.path)
            if directory in self._directories:
                spelled = posixpath.join(self._directories[directory], name)
                self._spelled[path] = self._first.setdefault(followed.identity, spelled) if followed.identity else spelled

    def is_device(self, path: str, limit: float) -> bool:
        """Whether the path is one of a block device, also through a link: /dev/vg/data, and /images/data that leads there. If
        its storage does not answer, the path alone decides."""
        if path not in self._followed:
            self._follow([path], limit)
        followed = self._followed.get(path, _Followed(path))
        return not followed.file and (named_as_device(path) or named_as_device(followed.path))

    def _follow(self, paths: Iterable[str], limit: float) -> None:
        new = list(dict.fromkeys(path for path in paths if path not in self._followed))
        for path, found in zip(new, files().each("follow", [(path,) for path in new], limit=limit), strict=True):
            if not isinstance(found, SilentStorageError):
                self._followed[path] = _Followed(path) if isinstance(found, TaskFailed) else _Followed(*found)

    def _look_at(self, directories: Iterable[str], limit: float) -> None:
        new = [path for path in directories if path not in self._directories]
        for path, found in zip(new, files().each("spell", [(path,) for path in new], limit=limit), strict=True):
            if isinstance(found, TaskFailed):
                self._directories[path] = posixpath.normpath(path)
            elif not isinstance(found, SilentStorageError):
                real, identity = found
                self._directories[path] = self._first.setdefault(identity, real) if identity else real


def named_as_device(path: str) -> bool:
    """Whether the path is one of a block device. Example: /dev/vg/data is; /dev/shm/vda.qcow2 is a file."""
    return path.startswith("/dev/") and not path.startswith("/dev/shm/")  # noqa: S108
