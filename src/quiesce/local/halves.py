"""Work on many files in two processes. Nearly all of its time goes into system calls, a few for each file, so threads of Python
would wait for each other."""

from __future__ import annotations

import errno
import marshal
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from quiesce.local.opening import Progress

MANY = 5000
"""Items from which on a second process is worth its start."""
_SIGN = b"\0"
"""No marshalled answer begins with it."""

Item = TypeVar("Item")


def each(items: Sequence[Item], work: Callable[[Sequence[Item], Progress], list[Any]], progress: Progress) -> list[Any]:
    """What `work` returns for the items: an answer for each, which can be marshalled. A second process does one half if there
    are many."""
    if len(items) < MANY:
        return work(items, progress)
    half = len(items) // 2
    reading, writing = os.pipe()
    second = os.fork()
    if not second:
        _answer(items[half:], work, writing)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb", buffering=0) as answers:
            found = work(items[:half], progress)
            content = bytearray()
            while piece := answers.read(1 << 20):
                content += piece.lstrip(_SIGN) if not content else piece
                progress(len(found), 0)
    finally:
        os.waitpid(second, 0)
    try:
        return found + list(marshal.loads(content))  # noqa: S302 - our own
    except (EOFError, ValueError):
        raise OSError(errno.EIO, "the second process of a look at many files failed") from None


def _answer(items: Sequence[Item], work: Callable[[Sequence[Item], Progress], list[Any]], writing: int) -> None:
    """The second process. It ends here."""
    try:
        for stream in (sys.stdin, sys.stdout):  # quiesce waits for the end of the latter
            os.close(stream.fileno())

        def tell(_done: int, _size: int) -> None:
            os.write(writing, _SIGN)

        found = work(items, tell)
        with os.fdopen(writing, "wb") as answers:
            marshal.dump(found, answers)
    finally:
        os._exit(0)
