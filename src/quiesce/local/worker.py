"""The process that looks at this machine's files, and changes them, for quiesce: client.py starts it.

It reads tasks from its standard input and answers each on its standard output, in order. It is killed if it does not answer,
and ends at once when quiesce does, whatever it is doing: whoever takes over the VM finds nobody at work. It imports as little
as possible, because it is started with every operation."""

from __future__ import annotations

import _thread
import errno
import marshal
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from quiesce.local import changing, looking

SIZE = struct.Struct(">I")
"""Before each message: its length. A message is marshalled: (kind, value)."""
DONE, FAILED, PROGRESS = 0, 1, 2
TASKS: dict[str, Callable[..., Any]] = {**looking.TASKS, **changing.TASKS}
LONG: dict[str, Callable[..., Any]] = {**looking.LONG, **changing.LONG}
"""Tasks that tell of their progress, so that they may take longer than one answer."""
SIGN_S = 0.1
"""Shortest time between two signs of progress, in seconds: each wakes quiesce up."""


def work(life: int) -> None:
    """Until there are no more tasks. `life`: as of `_end_with_quiesce`."""
    _thread.start_new_thread(_end_with_quiesce, (life,))
    while begin := sys.stdin.buffer.read(SIZE.size):
        name, each = marshal.loads(sys.stdin.buffer.read(SIZE.unpack(begin)[0]))  # noqa: S302 - our own
        for message in _answers(name, each):
            _say(message)


def _answers(name: str, each: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    for arguments in each:
        try:
            if name in LONG:
                yield DONE, LONG[name](*arguments, _signs())
            else:
                yield DONE, TASKS[name](*arguments)
        except OSError as error:
            yield FAILED, (error.errno or errno.EIO, error.strerror or str(error))
        except ValueError as error:  # no file can have this name
            yield FAILED, (errno.EINVAL, str(error))


def _signs() -> Callable[[int, int], None]:
    """Tells of the progress of one task."""
    told = time.monotonic()

    def progress(done: int, size: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= SIGN_S or done == size:
            told = now
            _say((PROGRESS, (done, size)))

    return progress


def _say(message: tuple[int, Any]) -> None:
    content = marshal.dumps(message)
    sys.stdout.buffer.write(SIZE.pack(len(content)) + content)
    sys.stdout.buffer.flush()


def _end_with_quiesce(life: int) -> None:
    """`life`: the reading end of a pipe whose other end quiesce has, and nobody else."""
    os.read(life, 1)
    os._exit(1)
