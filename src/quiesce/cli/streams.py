"""Standard output and standard error that never fail: what a verb has done is not lost with its output.

A closed stream, a full disk or a reader that has gone changes neither what a verb does nor its exit code. At the end a line on
standard error tells of output that was lost, unless the reader went away: `quiesce tree db1 | head -1` is no fault."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _Forgiving(io.RawIOBase):
    """A file descriptor for writing. What cannot be written is dropped, and the first error kept."""

    error: OSError | None = None

    def __init__(self, descriptor: int, *, closed: bool) -> None:
        self._descriptor = descriptor
        self._was_closed = closed

    def write(self, content: object) -> int:
        written = memoryview(content)  # type: ignore[arg-type]  # whatever BufferedWriter gives
        if self.error is None:
            try:
                if self._was_closed:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                return os.write(self._descriptor, written)
            except OSError as error:
                self.error = error
        return written.nbytes

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


@contextmanager
def forgiving() -> Iterator[None]:
    """Replaces both streams during the block, which may end with SystemExit; then tells of output that was lost."""
    closed = [not _open(descriptor) for descriptor in range(3)]
    out, err = (_Forgiving(descriptor, closed=closed[descriptor]) for descriptor in (1, 2))
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _text(out, before[0]), _text(err, before[1])
    try:
        yield
    finally:
        sys.stdout.flush()
        if out.error and out.error.errno != errno.EPIPE:
            sys.stderr.write(f"quiesce: write error: {out.error.strerror}\n")
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _open(descriptor: int) -> bool:
    """Whether the descriptor was open. One that was closed gets /dev/null: otherwise a file that is opened later gets its
    number, and with it what somebody prints."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
        return False
    return True


def _text(raw: _Forgiving, before: TextIO | None) -> TextIO:
    encoding, errors = (before.encoding, before.errors) if before else ("utf-8", "backslashreplace")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=raw.isatty() or raw.fileno() == 2)
