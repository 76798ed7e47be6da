"""Guests that are booted and prepared, saved with their memory, so that tests can resume them."""

from __future__ import annotations

import hashlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import box, ticker, workloads
from lab.image import Image, build
from lab.ledger import Ledger
from lab.load import Load
from lab.machine import Machine, saved
from lab.ram import SavedMachine
from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.guests import archive
from quiesce.operations.guest_install import guest_install


def booted(image: Image) -> SavedMachine:
    """A booted guest with PostgreSQL running, without our agent."""
    return saved("booted", image, Machine.wait_for_postgresql)


def ready(image: Image) -> SavedMachine:
    """A booted guest with PostgreSQL running and the present agent installed."""
    return saved(f"agent-{_key()}", image, install, start_from=booted(image))


def install(machine: Machine) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        catalog = Catalog(f"sqlite:///{Path(scratch)}/catalog.db")
        guest_install(Context("qemu:///system", catalog, lambda _: None), machine.name)
        catalog.close()


def with_clients(image: Image) -> SavedMachine:
    """A guest with the agent, whose database (`lab.ledger`) and filesystems (`lab.ticker`) clients write to all the time."""
    return saved(f"clients-{_key('ledger', 'ticker')}", image, _start_clients, start_from=ready(image))


def _start_clients(machine: Machine) -> None:
    Ledger(machine).start()
    ticker.start(machine)
    time.sleep(3)


def running(image: Image) -> SavedMachine:
    """A guest with the agent and all applications running except RabbitMQ. They have stores of their own, and no clients
    yet."""
    return saved(f"running-{_key('load', 'workloads')}", image, _start_all, start_from=ready(image))


def rabbitmq(image: Image) -> SavedMachine:
    """A guest with the agent, of whose applications only RabbitMQ runs."""
    return saved(f"rabbitmq-{_key('load', 'workloads')}", image, _start_rabbitmq, start_from=ready(image))


def _start_rabbitmq(machine: Machine) -> None:
    machine.run("systemctl stop postgresql")
    Load(machine, [workloads.RABBITMQ]).set_up()


def _key(*modules: str) -> str:
    """Of a guest with the present agent, and with what these modules of the lab do in it at present."""
    recipe = b"".join(Path(__file__).with_name(f"{module}.py").read_bytes() for module in modules)
    return hashlib.sha256(archive.build() + recipe).hexdigest()[:16]


def _start_all(machine: Machine) -> None:
    Load(machine, workloads.ALL_BUT_RABBITMQ).set_up()


def main() -> None:
    """Makes all these guests before the tests, so that no test has to wait for it. The two guest images are prepared at the
    same time."""
    from lab.shop.servers import prepared  # which needs this module

    def plain() -> None:
        with_clients(build())
        box.root_image(12)

    def applications() -> None:
        running(build(applications=True))
        rabbitmq(build(applications=True))
        prepared()
        box.root_image(13)

    with ThreadPoolExecutor() as pool:
        for made in [pool.submit(plain), pool.submit(applications)]:
            made.result()


if __name__ == "__main__":
    main()
