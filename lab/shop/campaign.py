"""Many checkpoints of the shop under load: of all three servers at one instant by quiesce, and one server after the other by
virsh.

A separate machine starts the databases of each checkpoint from its images and reads them. Some of quiesce's checkpoints are
also restored, with all servers.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import network
from lab.demo import Narrator, conclude, quiesce, window_ms
from lab.machine import left_behind
from lab.shop import books
from lab.shop.books import Auditor, Books
from lab.shop.customers import Customers
from lab.shop.demo import WINDOW_S
from lab.shop.servers import Servers

IN_TURN = 4
"""One checkpoint by virsh for so many by quiesce: a few are enough to show whether they agree, and they take longer."""
BETWEEN = 8
"""Number of orders between two checkpoints."""
RESTORES = 10
"""One of so many checkpoints is restored, the last one always."""


@dataclass
class Tally:
    """The counts of the checkpoints that were taken in one way."""

    checkpoints: int = 0
    with_violations: int = 0
    violations: int = 0
    acknowledged_missing: int = 0
    """Orders that were acknowledged before the checkpoint began, and that it lacks."""
    after_present: int = 0
    """Orders that began after the checkpoint had ended, and that it has."""
    example: str | None = None

    def add(self, found: Books, customers: Customers, begun_ns: int, ended_ns: int) -> None:
        violations = found.violations()
        self.checkpoints += 1
        self.with_violations += bool(violations)
        self.violations += len(violations)
        self.acknowledged_missing += len(found.missing(each for each in customers.orders if each.acknowledged_ns < begun_ns))
        self.after_present += len(found.present(each for each in customers.orders if each.started_ns > ended_ns))
        self.example = self.example or next(iter(violations), None)

    @property
    def good(self) -> bool:
        return self.checkpoints > 0 and not (self.violations or self.acknowledged_missing or self.after_present)


@dataclass
class Report:
    rounds: int
    quiesce: Tally = field(default_factory=Tally)
    in_turn: Tally = field(default_factory=Tally)
    """By `virsh snapshot-create-as --quiesce`, one server after the other."""
    restored: int = 0
    restored_otherwise: int = 0
    """Restores after which the servers had other books than the checkpoint's images."""
    client_errors: int = 0
    windows_ms: list[float] = field(default_factory=list)
    skews_ms: list[float] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.quiesce.good and self.restored > 0 and not (self.restored_otherwise or self.client_errors)


class Campaign:
    def __init__(self, servers: Servers, auditor: Auditor, catalog: Path, say: Narrator, report: Report) -> None:
        """The group `shop` must exist."""
        self._servers = servers
        self._auditor = auditor
        self._catalog = catalog
        self._say = say
        self.report = report

    def run(self) -> None:
        report = self.report
        found: dict[str, Books] = {}
        with Customers(self._servers.customer_entrance) as customers:
            for number in range(1, report.rounds + 1):
                found[f"round {number}"] = self._by_quiesce(customers, f"round {number}")
        report.client_errors += len(customers.errors)
        for number in range(report.rounds, 0, -RESTORES):
            self._restore(f"round {number}", found[f"round {number}"])
        with Customers(self._servers.customer_entrance) as customers:
            for _ in range(math.ceil(report.rounds / IN_TURN)):
                self._in_turn(customers)
        report.client_errors += len(customers.errors)

    def _by_quiesce(self, customers: Customers, name: str) -> Books:
        customers.wait_for(BETWEEN)
        begun = time.monotonic_ns()
        words = ("group", "checkpoint", "shop", "--name", name, "--window", WINDOW_S)
        taken = quiesce(*words, catalog=self._catalog, say=self._say)
        ended = time.monotonic_ns()
        customers.wait_for(BETWEEN)
        disks = {node["vm_name"]: {disk["target"]: disk["path"] for disk in node["disks"]} for node in taken["checkpoints"]}
        found = self._audit(disks[self._servers["db"].name]["vdb"], disks[self._servers["stock"].name]["vda"])
        self.report.quiesce.add(found, customers, begun, ended)
        self.report.windows_ms.append(round(window_ms(taken["checkpoints"][0]), 1))
        self.report.skews_ms.append(round(taken["skew_us"] / 1000, 1))
        return found

    def _in_turn(self, customers: Customers) -> None:
        customers.wait_for(BETWEEN)
        images = {(name, target): image for name in ("db", "stock") for target, image in self._images(name).items()}
        begun = time.monotonic_ns()
        for machine in self._servers.machines.values():
            self._say.say(f"$ virsh snapshot-create-as {machine.name} --quiesce")
            _virsh("snapshot-create-as", machine.name, "--disk-only", "--quiesce", "--no-metadata", "--atomic")
        ended = time.monotonic_ns()
        customers.wait_for(BETWEEN)
        self.report.in_turn.add(self._audit(images["db", "vdb"], images["stock", "vda"]), customers, begun, ended)

    def _images(self, name: str) -> dict[str, str]:
        """The images that the server writes now, by target."""
        listing = _virsh("domblklist", self._servers[name].name).splitlines()
        return dict(line.split(None, 1) for line in listing if line.strip())

    def _audit(self, db: str, stock: str) -> Books:
        found = self._auditor.books(Path(db), Path(stock))
        self._say.say(f"{len(found.orders)} orders, {len(found.violations())} violations")
        return found

    def _restore(self, name: str, expected: Books) -> None:
        words = ("group", "restore", f"shop@{name}", "--start", "--discard-current")
        quiesce(*words, catalog=self._catalog, say=self._say)
        for machine in self._servers.machines.values():
            machine.wait_for_guest()
        self._servers["db"].wait_for_postgresql()
        found = books.of_servers(self._servers)
        self.report.restored += 1
        self.report.restored_otherwise += found != expected


def _virsh(*words: str) -> str:
    """Runs virsh and returns its output. Raises SystemExit, with virsh's message, if it fails."""
    command = ["virsh", "-q", "-c", "qemu:///system", *words]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)}: {finished.stderr}")
    return finished.stdout


def run(servers: Servers, catalog: Path, say: Narrator, rounds: int) -> dict[str, Any]:
    with Auditor() as auditor:
        campaign = Campaign(servers, auditor, catalog, say, Report(rounds))
        try:
            campaign.run()
        except BaseException:
            say.say(f"seen until then: {asdict(campaign.report)}")
            raise
        return asdict(campaign.report) | {"good": campaign.report.good}


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/bench shop", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    say = Narrator(silent=False)
    with tempfile.TemporaryDirectory(prefix="quiesce-bench-") as scratch, Servers() as servers:
        catalog = Path(scratch) / "catalog.db"
        quiesce("group", "create", "shop", *servers.members, catalog=catalog, say=say)
        result = run(servers, catalog, say, rounds)
    return conclude(result, left_behind() + network.left_behind(), say, good=result["good"])


if __name__ == "__main__":
    sys.exit(main())
