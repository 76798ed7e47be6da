"""Measures the longest wait of a database client during a checkpoint by quiesce, and during `virsh snapshot-create-as
--quiesce`: of PostgreSQL and of MariaDB, with a page cache that another program dirties all the time, and with one that it does
not.

Both are taken in turn on one VM under one load: two clients insert and commit. The two do not do the same: libvirt's snapshot
freezes the filesystems only, so a database in it has to recover as after a power failure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import Machine, build, workloads
from lab.demo import Narrator, quiesce
from lab.ledger import Ledger
from lab.load import Load
from lab.ready import ready
from lab.waits import Acknowledged, longest_wait_ms

DIRTY = "dd if=/dev/zero of=/root/dirty bs=1M count=100 conv=notrunc 2>/dev/null; sleep 2"
PAUSE_S = 0.01
"""Of a client, between two commits: a commit is to be under way when the stall begins."""
DATABASES = ("postgresql", "mariadb")

Notes = Callable[[], Sequence[Acknowledged]]
"""The commits that were acknowledged so far."""


def start(database: str, machine: Machine) -> Notes:
    """Starts the database's clients."""
    if database == "postgresql":
        ledger = Ledger(machine, pause_s=PAUSE_S)
        ledger.start()
        return ledger.acknowledged
    workload = replace(workloads.MARIADB, pause_s=PAUSE_S)
    load = Load(machine, [workload])
    machine.run("systemctl stop postgresql")
    load.set_up()
    load.start()
    return lambda: sorted(load.acknowledged(workload), key=lambda entry: entry.acknowledged_ns)


def measure(notes: Notes, act: Callable[[], None]) -> float:
    """The duration of the longest commit that ran, at least in part, during `act`; in milliseconds."""
    started_ns = notes()[-1].acknowledged_ns
    act()
    time.sleep(1)
    entries = notes()
    return longest_wait_ms(entries, started_ns, entries[-1].acknowledged_ns)


class Bench:
    """One VM, and both ways to take a checkpoint of it."""

    def __init__(self, machine: Machine, catalog: Path) -> None:
        self._machine = machine
        self._catalog = catalog
        self._say = Narrator(silent=False)

    def ours(self) -> None:
        self._quiesce("checkpoint", self._machine.name, "--window", "30")

    def delete_ours(self) -> None:
        """So that both always work on chains of the same length."""
        newest = self._quiesce("tree", self._machine.name)["checkpoints"][-1]["name"]
        self._quiesce("delete", f"{self._machine.name}@{newest}")

    def theirs(self) -> None:
        self._virsh("snapshot-create-as", self._machine.name, "--disk-only", "--quiesce", "--no-metadata")

    def merge_theirs(self) -> None:
        for target in ("vda", "vdb"):
            # Without --shallow virsh commits into the base of the chain, the lab's cached image.
            self._virsh("blockcommit", self._machine.name, target, "--shallow", "--active", "--pivot", "--wait")

    def _quiesce(self, *words: str) -> Any:
        return quiesce(*words, catalog=self._catalog, say=self._say)

    def _virsh(self, *words: str) -> None:
        subprocess.run(["virsh", "-q", "-c", "qemu:///system", *words], check=True, stdout=subprocess.DEVNULL)


def compare(bench: Bench, notes: Notes, rounds: int) -> dict[str, Any]:
    waits: dict[str, list[float]] = {"quiesce": [], "virsh --quiesce": [], "nothing": []}
    for _ in range(rounds):
        waits["quiesce"].append(measure(notes, bench.ours))
        bench.delete_ours()
        waits["virsh --quiesce"].append(measure(notes, bench.theirs))
        bench.merge_theirs()
        waits["nothing"].append(measure(notes, lambda: time.sleep(2)))
    return figures(waits, "quiesce", "virsh --quiesce")


def figures(waits: dict[str, list[float]], ours: str, other: str) -> dict[str, Any]:
    """Median and maximum of each, and the ratio of the medians of two."""
    medians = {what: statistics.median(values) for what, values in waits.items()}
    found: dict[str, Any] = {
        what: {"median_ms": round(medians[what]), "max_ms": round(max(values))} for what, values in waits.items()
    }
    return found | {"ratio": round(medians[ours] / medians[other], 2)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--database", choices=DATABASES, action="append", help="only this one")
    arguments = parser.parse_args()
    image = build(applications=True)
    result: dict[str, Any] = {"rounds": arguments.rounds}
    for database in arguments.database or DATABASES:
        with (
            tempfile.TemporaryDirectory(prefix="quiesce-bench-") as scratch,
            Machine(image, start_from=ready(image)) as machine,
        ):
            notes = start(database, machine)
            time.sleep(5)  # until each client has written
            bench = Bench(machine, Path(scratch) / "catalog.db")
            result[f"{database}, clean cache"] = compare(bench, notes, arguments.rounds)
            machine.spawn(f"exec setsid sh -c 'while :; do {DIRTY}; done'")
            time.sleep(5)
            result[f"{database}, dirty cache"] = compare(bench, notes, arguments.rounds)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
