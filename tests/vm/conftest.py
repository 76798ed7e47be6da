"""Real guests. One is booted and saved; every test resumes that RAM image on disks of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lab.ready
from lab import Image, Machine, SavedMachine, build
from lab.bare import directory
from lab.forest import Forest
from lab.machine import left_behind
from quiesce.hypervisor.vm import Vm

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Tests leave no VM, pool or file."""
    yield
    assert left_behind() == []


@pytest.fixture(scope="session")
def image() -> Image:
    return build()


@pytest.fixture(scope="session")
def booted(image: Image) -> SavedMachine:
    return lab.ready.booted(image)


@pytest.fixture(scope="session")
def ready(image: Image) -> SavedMachine:
    return lab.ready.ready(image)


@pytest.fixture(scope="session")
def applications() -> Image:
    """A guest with every application."""
    return build(applications=True)


@pytest.fixture
def bare_server(applications: Image, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Such a guest with the agent; of the applications only PostgreSQL runs."""
    with Machine(applications, start_from=lab.ready.ready(applications)) as machine:
        yield machine
        _explain(machine, request)


@pytest.fixture
def server(applications: Image, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Such a guest with the agent and every application running but RabbitMQ."""
    with Machine(applications, start_from=lab.ready.running(applications)) as machine:
        yield machine
        _explain(machine, request)


@pytest.fixture
def machine(image: Image, ready: SavedMachine, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A running guest with the agent."""
    with Machine(image, start_from=ready) as machine:
        yield machine
        _explain(machine, request)


def _explain(machine: Machine, request: pytest.FixtureRequest) -> None:
    """What the guest has to say of a test that failed."""
    if request.node.stash.get(FAILED, False):
        print(f"--- console of {machine.name} ---\n{machine.console()[-3000:]}")
        with contextlib.suppress(Exception):
            print("--- agent log ---\n" + machine.run("journalctl -b -u quiesce-agent --no-pager | tail -50").stdout)


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
        started = time.monotonic()
        finished = subprocess.run(
            [self.program, *arguments], capture_output=True, text=True, env=self.environment, check=False, timeout=timeout
        )
        # The timeline, which pytest shows for a test that fails.
        print(f"[{started:.3f} to {time.monotonic():.3f}] quiesce {' '.join(arguments)} -> {finished.returncode}")
        print(finished.stdout + finished.stderr)
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    def fails(self, *arguments: str, code: int) -> str:
        """The error message of a run that must fail with this exit code."""
        error = self(*arguments, expect=code)["error"]
        assert error["exit_code"] == code
        return f"{error['message']} {error['hint'] or ''}"


@pytest.fixture
def quiesce(tmp_path: Path) -> Quiesce:
    return Quiesce(tmp_path)


@pytest.fixture
def vm(machine: Machine) -> Iterator[Vm]:
    """The machine as our own hypervisor room sees it."""
    vm = Vm("qemu:///system", machine.name)
    yield vm
    vm.close()


@pytest.fixture
def forest() -> Iterator[Forest]:
    """A VM with two small disks and no guest."""
    with directory() as path:
        forest = Forest(path)
        yield forest
        forest.remove()
