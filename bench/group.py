"""Measures how long a group checkpoint holds writes, for groups of 1, 2, 4 and 8 small VMs.

Each VM has PostgreSQL and a writer that takes a second to hold, like an application that first completes its running requests.
The sum of the members' times (`sum_alone_ms`) is how long the window would be if the members were held one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

from lab import Machine, build, misbehaving, ready
from lab.demo import Narrator, quiesce, window_ms

SLOW_HOLD_MS = 1000
WINDOW_S = "40"


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/bench group", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print nothing but the result, as JSON")
    options = parser.parse_args()
    say = Narrator(silent=options.json)
    image = build()
    start_from = ready.ready(image)
    with tempfile.TemporaryDirectory(prefix="quiesce-bench-") as scratch, contextlib.ExitStack() as stack:
        catalog = Path(scratch) / "catalog.db"
        machines = [stack.enter_context(Machine(image, start_from=start_from)) for _ in range(max(options.sizes))]
        for machine in machines:
            misbehaving.start(machine, f"--delay hold={SLOW_HOLD_MS}")
        alone = []
        for machine in machines:
            nodes = [
                quiesce("checkpoint", machine.name, "--name", f"alone {number}", "--window", WINDOW_S, catalog=catalog, say=say)
                for number in range(options.rounds)
            ]
            alone.append(statistics.median(window_ms(node) for node in nodes))
        rows = []
        for size in options.sizes:
            quiesce("group", "create", f"of-{size}", *(each.name for each in machines[:size]), catalog=catalog, say=say)
            taken = [
                quiesce("group", "checkpoint", f"of-{size}", "--name", f"{size} {number}", "--window", WINDOW_S,
                        catalog=catalog, say=say)
                for number in range(options.rounds)
            ]  # fmt: skip
            rows.append(
                {
                    "vms": size,
                    "window_ms": round(statistics.median(window_ms(each["checkpoints"][0]) for each in taken)),
                    "longest_stall_ms": round(
                        statistics.median(max(node["stall_ms"] for node in each["checkpoints"]) for each in taken)
                    ),
                    "skew_ms": round(statistics.median(each["skew_us"] for each in taken) / 1000, 1),
                    "slowest_alone_ms": round(max(alone[:size])),
                    "sum_alone_ms": round(sum(alone[:size])),
                }
            )
    if options.json:
        print(json.dumps({"rounds": options.rounds, "slow_hold_ms": SLOW_HOLD_MS, "sizes": rows}, indent=2))
    else:
        print("  ".join(f"{key:>16}" for key in rows[0]))
        for row in rows:
            print("  ".join(f"{value:>16}" for value in row.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
