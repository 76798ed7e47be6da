"""Real guests. One is booted and saved; every test resumes that RAM image on disks of its own."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

import lab.ready
from lab import Image, Machine, SavedMachine, build
from lab.machine import entered
from quiesce.hypervisor.vm import Vm
from tests.host import Quiesce, nothing_left_behind, quiesce

__all__ = ["Quiesce", "nothing_left_behind", "quiesce"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the guests have to say of a test that failed; a guest that the test itself started has been asked already."""
    report = yield
    if report.failed:
        report.sections += [(f"guest {name}", machine.explanation()) for name, machine in entered.items()]
    return report


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
def bare_server(applications: Image) -> Iterator[Machine]:
    """Such a guest with the agent; of the applications only PostgreSQL runs."""
    with Machine(applications, start_from=lab.ready.ready(applications)) as machine:
        yield machine


@pytest.fixture
def server(applications: Image) -> Iterator[Machine]:
    """Such a guest with the agent and every application running but RabbitMQ."""
    with Machine(applications, start_from=lab.ready.running(applications)) as machine:
        yield machine


@pytest.fixture
def broker(applications: Image) -> Iterator[Machine]:
    """Such a guest with the agent and RabbitMQ running, and no other application."""
    with Machine(applications, start_from=lab.ready.rabbitmq(applications)) as machine:
        yield machine


@pytest.fixture
def machine(image: Image, ready: SavedMachine) -> Iterator[Machine]:
    """A running guest with the agent."""
    with Machine(image, start_from=ready) as machine:
        yield machine


@pytest.fixture
def vm(machine: Machine) -> Iterator[Vm]:
    """The machine as our own hypervisor room sees it."""
    vm = Vm("qemu:///system", machine.name)
    yield vm
    vm.close()
