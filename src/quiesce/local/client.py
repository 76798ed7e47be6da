"""Looks at this machine's files, and changes them, by way of a process (worker.py) that is left behind if a filesystem does not
answer: a system call that waits for such a filesystem cannot be ended from within."""

from __future__ import annotations

import errno
import marshal
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quiesce
from quiesce.local.worker import DONE, PROGRESS, SIZE
from quiesce.model.errors import SilentStorageError

LIMIT_S = 20.0
"""Longest wait for a sign of a storage that an operation needs, in seconds. An automounter or a disk that sleeps takes some."""
OTHERS_LIMIT_S = 5.0
"""Longest wait for a storage that an operation only has a look at, in seconds."""
HUNG_FOR_S = 60.0
"""How long a storage that did not answer is not asked again, in seconds."""

Answer = Any
_PROGRAM = "import sys; sys.path.insert(0, {root!r}); from quiesce.local.worker import work; work({life})"
_TRUSTED = ("btrfs", "zfs", "tmpfs", "overlay", "ramfs")
"""Filesystems without a block device of their own that always answer."""


@dataclass(frozen=True)
class TaskFailed:
    """What a task that failed answers."""

    errno: int
    strerror: str

    def error(self) -> OSError:
        return OSError(self.errno, self.strerror)


class _Process:
    """One worker."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        tasks, self.tasks = os.pipe()
        self.answers, answers = os.pipe()
        life, self._life = os.pipe()
        os.set_inheritable(life, True)
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # whoever reads our standard error must not wait for it
        try:
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _PROGRAM.format(root=str(Path(quiesce.__file__).parents[1]), life=life)],
                {"LC_ALL": "C.UTF-8"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, tasks, 0),
                    (os.POSIX_SPAWN_DUP2, answers, 1),
                    (os.POSIX_SPAWN_DUP2, null, 2),
                ],
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM],
                setpgroup=0,  # Ctrl-C is for quiesce, which ends it
            )
        finally:
            for descriptor in (tasks, answers, life, null):
                os.close(descriptor)

    def end(self) -> None:
        """Takes effect, for a worker that is stuck, when its system call returns."""
        for descriptor in (self.tasks, self.answers, self._life):
            with suppress(OSError):
                os.close(descriptor)
        if self.owner == os.getpid():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            _left_behind.add(self.pid)
            _bury()


_left_behind: set[int] = set()


def _bury() -> None:
    for pid in list(_left_behind):
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        _left_behind.discard(pid)


class Worker:
    """Gives tasks to a worker, which is started when it is first needed. Can be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process: _Process | None = None
        self._hung: dict[str, float] = {}
        """Directories and mount points that did not answer, and when."""

    def one(
        self, task: str, *arguments: Any, limit: float = LIMIT_S, progress: Callable[[int, int], None] | None = None
    ) -> Answer:
        """What the task returns. Its first argument is a path. Raises OSError, and SilentStorageError if there is no sign of it
        for `limit` seconds."""
        (answer,) = self.each(task, [arguments], limit=limit, progress=progress)
        if isinstance(answer, TaskFailed):
            raise answer.error()
        if isinstance(answer, SilentStorageError):
            raise answer
        return answer

    def each(
        self,
        task: str,
        wanted: Sequence[tuple[Any, ...]],
        *,
        limit: float = LIMIT_S,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:
        """What each of these tasks returns, a TaskFailed, or a SilentStorageError: one storage that hangs costs `limit`
        seconds, however many of the tasks need it."""
        with self._lock:
            found: list[Answer] = []
            while len(found) < len(wanted):
                rest = wanted[len(found) :]
                if hung := self._why_hung(rest[0][0]):
                    found.append(hung)
                    continue
                ahead = next((at for at, arguments in enumerate(rest) if self._why_hung(arguments[0])), len(rest))
                found += self._ask(task, rest[:ahead], limit, progress)
            return found

    def _ask(
        self, task: str, wanted: Sequence[tuple[Any, ...]], limit: float, progress: Callable[[int, int], None] | None
    ) -> list[Answer]:
        """As `each`; leaves out what comes after a task that was not answered."""
        found: list[Answer] = []
        try:
            process = self._running()
            _send(process.tasks, marshal.dumps((task, [tuple(arguments) for arguments in wanted])), limit)
            answers = _received(process.answers, limit)
            while len(found) < len(wanted):
                kind, value = next(answers)
                if kind == PROGRESS:
                    if progress:
                        progress(*value)
                else:
                    found.append(value if kind == DONE else TaskFailed(*value))
        except (TimeoutError, OSError):
            self._end()
            path = wanted[len(found)][0]
            self._hung[_storage_of(path)] = time.monotonic()
            found.append(self._why_hung(path) or not_answering(path))
        except BaseException:  # a progress was cancelled, or Ctrl-C
            self._end()
            raise
        return found

    def _running(self) -> _Process:
        if self._process is not None and self._process.owner != os.getpid():
            self._process = None  # it is of the process that we were forked from
        if self._process is None:
            self._process = _Process()
        return self._process

    def close(self) -> None:
        """Ends the process; the next task starts another one."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
        self._process = None

    def _why_hung(self, path: str) -> SilentStorageError | None:
        for place, since in self._hung.items():
            if time.monotonic() - since < HUNG_FOR_S and (path == place or path.startswith(f"{place}/")):
                return not_answering(place)
        return None


def not_answering(place: str) -> SilentStorageError:
    return SilentStorageError(
        f"the storage at {place} does not answer", hint=f"see what is wrong with it: findmnt --target {place}"
    )


def _send(descriptor: int, content: bytes, limit: float) -> None:
    view = memoryview(SIZE.pack(len(content)) + content)
    os.set_blocking(descriptor, False)
    while view:
        if not select.select([], [descriptor], [], limit)[1]:
            raise TimeoutError
        view = view[os.write(descriptor, view) :]


def _received(descriptor: int, limit: float) -> Iterator[Any]:
    """The messages, as they come. Raises TimeoutError, and OSError if the worker is gone."""
    data = b""
    while True:
        while len(data) >= SIZE.size and len(data) >= (end := SIZE.size + SIZE.unpack_from(data)[0]):
            yield marshal.loads(data[SIZE.size : end])  # noqa: S302 - our own worker's
            data = data[end:]
        pieces = [data]
        if not select.select([descriptor], [], [], limit)[0]:
            raise TimeoutError
        piece = os.read(descriptor, 1 << 20)
        if not piece:
            raise OSError(errno.EPIPE, "the worker ended")
        pieces.append(piece)
        data = b"".join(pieces)


def _storage_of(path: str) -> str:
    """What to leave alone when this path does not answer: its mount point if that is one of a storage that may hang, otherwise
    the directory. Reads the kernel's table only."""
    best, trusted = "/", True
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
            words = line.split()
            point = words[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            if (path == point or path.startswith(f"{point.rstrip('/')}/")) and len(point) >= len(best):
                kind = words[words.index("-") + 1]
                best, trusted = point, not words[2].startswith("0:") or kind in _TRUSTED
    return path if trusted else best


_files: Worker | None = None


def files() -> Worker:
    """Of this process."""
    global _files
    if _files is None:
        _files = Worker()
    return _files
