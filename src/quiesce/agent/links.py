"""Follows a path name by name, as the kernel does. The caller can look at each place before anything there is touched."""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterator

MAX_LINKS = 40


class NoWayError(OSError):
    """The path leads nowhere: a name does not exist, there are too many links, or a link is a stranger's."""


def walk(path: str, top: str = "", owners: Container[int] = ()) -> Iterator[str]:
    """The places on the way to an absolute path below the directory `top`, itself left out of them; the last one is where the
    path leads. A place is touched only when the caller asks for the next. Symbolic links are followed below `top`.

    `owners`: whose links are followed; none given: anybody's. Raises NoWayError.
    """
    names, here, links = path.split("/"), "/", 0
    yield here
    while names:
        name = names.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            here = os.path.dirname(here)
            yield here
            continue
        place = os.path.join(here, name)
        yield place
        try:
            target = os.readlink(top + place)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise NoWayError(error.errno, error.strerror, path) from None
            here = place  # it is no link
            continue
        links += 1
        if links > MAX_LINKS:
            raise NoWayError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if owners and os.lstat(top + place).st_uid not in owners:
            raise NoWayError(errno.EPERM, f"{place} is a stranger's link", path)
        here = "/" if target.startswith("/") else here
        yield here
        names = [*target.split("/"), *names]
