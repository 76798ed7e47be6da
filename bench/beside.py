"""Measures the longest wait of a database client of a VM while a copy of its checkpoint is booted aside (`quiesce verify`),
while another program takes one processor of the host for as long, and while nothing does: `script/bench verify`.

All three in turns, on one VM under one load: two clients insert and commit."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench.stall import figures, measure, start
from lab import Machine, build
from lab.demo import Narrator, quiesce
from lab.ready import ready


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/bench verify", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    image = build()
    with tempfile.TemporaryDirectory(prefix="quiesce-bench-") as scratch, Machine(image, start_from=ready(image)) as machine:
        notes = start("postgresql", machine)
        time.sleep(5)  # until each client has written
        catalog, say = Path(scratch) / "catalog.db", Narrator(silent=False)
        quiesce("checkpoint", machine.name, "--name", "one", "--window", "30", catalog=catalog, say=say)
        verify = partial(quiesce, "verify", f"{machine.name}@one", catalog=catalog, say=say)
        waits: dict[str, list[float]] = {"verify": [], "one processor": [], "nothing": []}
        for _ in range(rounds):
            began = time.monotonic()
            waits["verify"].append(measure(notes, verify))
            took = time.monotonic() - began
            waits["one processor"].append(measure(notes, partial(_busy, took)))
            waits["nothing"].append(measure(notes, partial(time.sleep, took)))
    print(
        json.dumps(
            figures(waits, "verify", "one processor") | {"rounds": rounds, "seconds of the last verify": round(took)}, indent=2
        )
    )
    return 0


def _busy(seconds: float) -> None:
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(seconds)
    finally:
        program.kill()
        program.wait()


if __name__ == "__main__":
    sys.exit(main())
