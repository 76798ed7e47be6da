"""Measures the longest wait of a database client during a checkpoint by quiesce, and during `virsh snapshot-create-as
--quiesce`.

Both are taken in turn on one VM under one load: two clients insert and commit, and another program dirties the page cache. The
two do not do the same: libvirt's snapshot freezes the filesystems only, so a database in it has to recover.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lab import Machine, build, saved
from lab.demo import Narrator, quiesce
from lab.ledger import Ledger
from lab.waits import longest_wait_ms

DIRTY = "while :; do dd if=/dev/zero of=/root/dirty bs=1M count=100 conv=notrunc 2>/dev/null; sleep 2; done"


def measure(ledger: Ledger, act: Callable[[], None]) -> float:
    """The duration of the longest commit that ran, at least in part, during `act`; in milliseconds."""
    entries = ledger.acknowledged()
    started_ns = entries[-1].acknowledged_ns
    act()
    time.sleep(1)
    entries = ledger.acknowledged()
    return longest_wait_ms(entries, started_ns, entries[-1].acknowledged_ns)


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    say = Narrator(silent=False)
    image = build()
    waits: dict[str, list[float]] = {"quiesce": [], "virsh --quiesce": [], "nothing": []}
    with (
        tempfile.TemporaryDirectory(prefix="quiesce-bench-") as scratch,
        Machine(image, start_from=saved("booted", image, Machine.wait_for_postgresql)) as machine,
    ):
        catalog = Path(scratch) / "catalog.db"
        quiesce("guest", "install", machine.name, catalog=catalog, say=say)
        ledger = Ledger(machine)
        ledger.start()
        machine.spawn(f"exec setsid sh -c '{DIRTY}'")
        time.sleep(3)

        def ours() -> None:
            quiesce("checkpoint", machine.name, catalog=catalog, say=say)

        def theirs() -> None:
            command = ["virsh", "-q", "-c", "qemu:///system", "snapshot-create-as", machine.name, "--disk-only", "--quiesce",
                       "--no-metadata"]  # fmt: skip
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        for _ in range(rounds):
            waits["quiesce"].append(measure(ledger, ours))
            # Delete our checkpoint and merge libvirt's overlay, so that both always work on chains of the same length.
            newest = quiesce("tree", machine.name, catalog=catalog, say=say)["checkpoints"][-1]["name"]
            quiesce("delete", f"{machine.name}@{newest}", catalog=catalog, say=say)
            waits["virsh --quiesce"].append(measure(ledger, theirs))
            for target in ("vda", "vdb"):
                commit = [
                    "virsh",
                    "-q",
                    "-c",
                    "qemu:///system",
                    "blockcommit",
                    machine.name,
                    target,
                    "--shallow",  # without it virsh commits into the base of the chain, the lab's cached image
                    "--active",
                    "--pivot",
                    "--wait",
                ]
                subprocess.run(commit, check=True, stdout=subprocess.DEVNULL)
            waits["nothing"].append(measure(ledger, lambda: time.sleep(2)))
    result = {
        what: {"median_ms": round(statistics.median(values)), "max_ms": round(max(values))} for what, values in waits.items()
    }
    print(json.dumps({"rounds": rounds, **result}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
