"""A writer for tests, as `vswriter.exe` is for VSS: it keeps a file of its own, and misbehaves when told to.

    python3 -m quiesce.testing.writer --data /srv/counter --fail hold --outcome timeout

In a guest: PYTHONPATH=/usr/local/lib/quiesce/quiesce-agent.pyz. The file contains a number that grows, and is flushed to disk,
every 10 ms unless the writer holds; the number is also the position. If the file in a checkpoint has another number than the
position, the hold failed. PHASE is one of identify, prepare, hold, release, post-checkpoint. The option acts at the beginning
of the phase, so `--die release` dies during the hold.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from quiesce.writer import GRADES, OUTCOMES, SOCKET, Failed, Report, Writer, run

PHASES = ("identify", "prepare", "hold", "release", "post-checkpoint")
LEVELS = ("front-end", "back-end", "system")
INTERVAL_S = 0.01


class Counter:
    """A number that grows unless it is held, in a file or in memory only. It continues from the number in the file."""

    def __init__(self, path: str | None) -> None:
        self.value = 0
        self.found = 0
        """The number that was in the file at the start."""
        self._free = threading.Lock()
        self._held = False
        if path is not None:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.value = self.found = int(os.pread(self._file, 20, 0) or 0)
            threading.Thread(target=self._count, daemon=True).start()

    def hold(self, timeout_s: float) -> None:
        """Returns when the last write is on disk and no other will begin. Raises Failed (timeout)."""
        if not self._free.acquire(timeout=timeout_s):
            raise Failed("timeout", "a write did not end")
        self._held = True

    def release(self) -> None:
        """Idempotent."""
        if self._held:
            self._held = False
            self._free.release()

    def _count(self) -> None:
        while True:
            with self._free:
                os.pwrite(self._file, b"%020d\n" % (self.value + 1), 0)
                os.fsync(self._file)
                self.value += 1
            time.sleep(INTERVAL_S)


class TestWriter(Writer):
    """Behaves as the command line says."""

    __test__ = False  # not a test of pytest's

    def __init__(self, options: argparse.Namespace) -> None:
        self.name = options.name
        self.application = "test"
        self.level = options.level
        self.paths = [str(Path(options.data).resolve().parent)] if options.data else []
        self.socket_path = options.socket
        self._options = options
        self._counter = Counter(options.data)
        self._connection: socket.socket | None = None

    def connect(self) -> socket.socket:
        self._connection = super().connect()
        return self._connection

    def identify(self) -> Report:
        return self._phase("identify")

    def prepare(self, window_ms: int) -> Report:
        return self._phase("prepare", window_ms=window_ms)

    def hold(self, timeout_ms: int) -> Report:
        return self._phase("hold", lambda: self._counter.hold(timeout_ms / 1000), timeout_ms=timeout_ms)

    def release(self) -> Report:
        return self._phase("release", self._counter.release)

    def post_checkpoint(self, kept: bool) -> Report:
        return self._phase("post-checkpoint", kept=kept)

    def verify(self) -> Report:
        """In a copy of a checkpoint: the number in the file is the position of the checkpoint, unless the hold was a lie."""
        return Report(position={"sequence": self._counter.found})

    def _phase(self, phase: str, work: Callable[[], None] = lambda: None, **arguments: int) -> Report:
        options = self._options
        self._log(phase, arguments)
        time.sleep(dict(options.delay).get(phase, 0) / 1000)
        if phase in options.die:
            os.kill(os.getpid(), signal.SIGKILL)
        if phase in options.hang:
            threading.Event().wait()
        if phase in options.disconnect and self._connection:
            self._connection.shutdown(socket.SHUT_RDWR)
        if phase in options.fail:
            raise Failed(options.outcome, f"told to fail at {phase}")
        if phase not in options.lie:
            work()
        return Report(grade=options.grade, position={"sequence": self._counter.value})

    def _log(self, phase: str, arguments: dict[str, int]) -> None:
        if self._options.log:
            line = {"monotonic_ns": time.monotonic_ns(), "writer": self.name, "phase": phase, **arguments}
            with Path(self._options.log).open("a") as file:  # in one write, so that several writers can share it
                file.write(json.dumps(line) + "\n")


def _delay(text: str) -> tuple[str, int]:
    phase, _, milliseconds = text.partition("=")
    if phase not in PHASES:
        raise argparse.ArgumentTypeError(f"{phase!r} is not one of {', '.join(PHASES)}")
    return phase, int(milliseconds)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line. Ends the process if it is wrong."""
    parser = argparse.ArgumentParser(prog="python3 -m quiesce.testing.writer", description="A writer that misbehaves as told.")
    parser.add_argument("--name", default="test")
    parser.add_argument("--level", choices=LEVELS, default="back-end")
    parser.add_argument("--data", metavar="FILE", help="writes an increasing number to FILE, unless held")
    parser.add_argument("--log", metavar="FILE", help="appends a line for each call; in /run or /dev/shm, which never freeze")
    parser.add_argument("--outcome", choices=OUTCOMES[1:], default="retryable", help="outcome of --fail")
    parser.add_argument("--grade", choices=GRADES, help="the grade that it claims; without this option, none")
    parser.add_argument("--socket", default=SOCKET, help="the agent's socket")
    for option, text in {
        "--fail": "says that it failed",
        "--hang": "never answers",
        "--die": "kills itself",
        "--disconnect": "hangs up",
        "--lie": "only answers: `--lie hold` goes on writing",
    }.items():
        parser.add_argument(option, metavar="PHASE", choices=PHASES, action="append", default=[], help=text)
    parser.add_argument("--delay", metavar="PHASE=MS", type=_delay, action="append", default=[], help="first waits")
    return parser.parse_args(arguments)


def main() -> None:
    """Runs until it is killed. On SIGTERM it takes leave of the agent, as an application that is stopped on purpose does."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    run(TestWriter(parse(sys.argv[1:])))


if __name__ == "__main__":
    main()
