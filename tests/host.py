"""What tests on real disks and tests on real guests both need."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import victim
from lab.bare import directory
from lab.forest import Forest
from lab.machine import left_behind


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Tests leave no VM, pool or file."""
    yield
    assert left_behind() == []


@dataclass(frozen=True)
class Finished:
    """How a run of the command line ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class Quiesce:
    """The command line, as a user has it, with a catalog of its own."""

    program = Path(sys.executable).with_name("quiesce")

    def __init__(self, directory: Path) -> None:
        self.environment = os.environ | {"QUIESCE_CATALOG": str(directory / "catalog.db")}

    def __call__(self, *arguments: str, expect: int = 0, timeout: float = 120) -> Any:
        """Runs with --json; the JSON. Fails the test if the exit code is not as expected."""
        finished = self.run(*arguments, "--json", timeout=timeout)
        assert finished.returncode == expect, finished
        return finished.json

    def run(self, *arguments: str, timeout: float = 120) -> Finished:
        # The timeline, which pytest shows for a test that fails.
        print(f"[{time.monotonic():.3f}] quiesce {' '.join(arguments)}")
        finished = victim.run([*arguments], self.environment, timeout)  # to start the program anew takes half a second
        print(f"{finished.stdout}{finished.stderr}[{time.monotonic():.3f}] ended with {finished.returncode}")
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    def fails(self, *arguments: str, code: int, timeout: float = 120) -> str:
        """The error message of a run that must fail with this exit code."""
        error = self(*arguments, expect=code, timeout=timeout)["error"]
        assert error["exit_code"] == code
        return f"{error['message']} {error['hint'] or ''}"


def interruptible() -> None:
    """To be run in a child before its program: Ctrl-C reaches it although whoever runs the tests, as in the background, ignores
    it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def quiesce(tmp_path: Path) -> Quiesce:
    return Quiesce(tmp_path)


@pytest.fixture
def forest() -> Iterator[Forest]:
    """A VM with two small disks and no guest."""
    with directory() as path:
        forest = Forest(path)
        yield forest
        forest.remove()
