"""The longest wait of a database client around a checkpoint: quiesce beside `virsh snapshot-create-as --quiesce`.

Both are taken in turn on one VM under one load: two clients that insert and commit, while another program dirties the page
cache. What is compared is not the same thing: libvirt's snapshot freezes filesystems only, so its database has to recover.
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
    """Milliseconds that the longest commit took which was under way while `act` ran."""
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
            # Ours is deleted again, so that both work on a chain of the same depth, and theirs is merged away.
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
                    "--shallow",  # without it virsh merges all the way down, into the lab's cached image
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
