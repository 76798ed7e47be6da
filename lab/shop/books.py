"""Reads the two databases, from running servers or from a checkpoint's images, and checks whether they agree."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lab.image import build
from lab.machine import Machine
from lab.shop.servers import LEVEL, Servers, prepared
from lab.waits import Entry

ORDERS = "SELECT key || ' ' || item || ' ' || quantity FROM orders"
MOVEMENTS = "SELECT CONCAT(order_key, ' ', item, ' ', quantity) FROM shop.movements"
LEVELS = "SELECT CONCAT(item, ' ', level) FROM shop.items"


@dataclass(frozen=True)
class Books:
    orders: frozenset[str]
    """Each as `KEY ITEM QUANTITY`."""
    movements: frozenset[str]
    """Each as `KEY ITEM QUANTITY`."""
    levels: dict[int, int]
    """The stock of each item."""

    def violations(self) -> list[str]:
        """The violated invariants, a sentence for each."""
        found = [f"order without movement of stock: {line}" for line in sorted(self.orders - self.movements)]
        found += [f"movement of stock without order: {line}" for line in sorted(self.movements - self.orders)]
        gone = dict.fromkeys(self.levels, 0)
        for line in self.movements:
            _, item, quantity = line.split()
            gone[int(item)] += int(quantity)
        found += [f"item {item}: {level} left, {gone[item]} gone" for item, level in self.levels.items()
                  if level + gone[item] != LEVEL]  # fmt: skip
        return found

    def missing(self, acknowledged: Iterable[Entry]) -> set[str]:
        return {order.key for order in acknowledged} - {line.split()[0] for line in self.orders}

    def present(self, orders: Iterable[Entry]) -> set[str]:
        return {order.key for order in orders} & {line.split()[0] for line in self.orders}


def of_servers(servers: Servers) -> Books:
    return _read(servers["db"], servers["stock"])


def _read(db: Machine, stock: Machine) -> Books:
    orders = db.sql(ORDERS, database="shop", timeout=120).splitlines()
    movements = stock.run(f'mariadb -N -e "{MOVEMENTS}"', timeout=120).stdout.splitlines()
    levels = stock.run(f'mariadb -N -e "{LEVELS}"').stdout.splitlines()
    return Books(frozenset(orders), frozenset(movements), {int(item): int(level) for item, level in map(str.split, levels)})


class Auditor:
    """A machine that starts both databases on overlays of images and reads them. That is much faster than booting all
    servers."""

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        with self._stack:
            self._machine = self._stack.enter_context(Machine(build(applications=True), start_from=prepared()))
            self._machine.domain.attachDeviceFlags("<controller type='scsi' index='0' model='virtio-scsi'/>", 1)
            self._machine.run("modprobe sd_mod; ip link set lo up")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def books(self, db: Path, stock: Path) -> Books:
        """The books in two images. `db`: the image of the data disk of `db`. `stock`: the image of the system disk of `stock`.
        Neither image is written."""
        with self._attached("sda", db), self._attached("sdb", stock):
            self._machine.run(MOUNT, timeout=60)
            try:
                self._machine.run("systemctl start postgresql@17-main mariadb", timeout=180)
                self._machine.wait_for_postgresql()
                return _read(self._machine, self._machine)
            finally:
                self._machine.run(UNMOUNT, timeout=120)

    @contextlib.contextmanager
    def _attached(self, target: str, image: Path) -> Iterator[None]:
        copy = self._machine.directory / f"{target}.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image), str(copy)], check=True, timeout=60
        )
        xml = (
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{copy}'/>"
            f"<target dev='{target}' bus='scsi'/></disk>"
        )
        self._machine.domain.attachDeviceFlags(xml, 1)
        try:
            yield
        finally:
            self._machine.domain.detachDeviceFlags(xml, 1)
            self._machine.run(f"for n in $(seq 100); do test -e /dev/{target} || exit 0; sleep 0.1; done; exit 1")
            copy.unlink()


MOUNT = """
set -e
for n in $(seq 100); do test -b /dev/sda && test -b /dev/sdb && break; sleep 0.1; done
mkdir -p /mnt/stock
mount /dev/sda /var/lib/postgresql
mount /dev/sdb /mnt/stock
mount --bind /mnt/stock/var/lib/mysql /var/lib/mysql
"""
UNMOUNT = """
systemctl kill -s KILL mariadb postgresql@17-main
systemctl stop mariadb postgresql@17-main
rm -f /var/run/postgresql/.s.PGSQL* /run/mysqld/*
umount /var/lib/mysql /mnt/stock
umount /var/lib/postgresql
"""
