"""The main job on a real VM: checkpoint a database under load, lose everything, restore it clean, and prove it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lab import Machine, build
from lab.emulation import kvm_works
from lab.ledger import DATABASE, Ledger
from lab.machine import left_behind
from lab.proof import amcheck_errors, recovery
from lab.waits import longest_wait_ms
from quiesce.applications.postgresql import same_end

SYSTEM_FILE = "/usr/lib/systemd/systemd"
DATA = "/var/lib/postgresql/17/main"
PGBENCH = "pgbench -n -c 4 -T 900" + ("" if kvm_works() else " -R 10")
"""An emulated guest is given 10 transactions a second: as many as it can do leave no time for the agent."""


class Narrator:
    """Tells a person what happens, on standard error."""

    def __init__(self, *, silent: bool) -> None:
        self._started = time.monotonic()
        self._silent = silent

    def say(self, text: str) -> None:
        if not self._silent:
            print(f"\033[1m[{time.monotonic() - self._started:6.1f} s]\033[0m {text}", file=sys.stderr, flush=True)


def quiesce(*arguments: str, catalog: Path, say: Narrator, code: int = 0) -> Any:
    """Runs the command line as a user would, and returns its JSON. Raises SystemExit if the exit code is not `code`."""
    say.say(f"$ quiesce {' '.join(arguments)}")
    program = Path(sys.executable).with_name("quiesce")
    finished = subprocess.run(
        [program, *arguments, "--json"],
        stdout=subprocess.PIPE,
        env=os.environ | {"QUIESCE_CATALOG": str(catalog)},
        check=False,
        timeout=1200,
    )
    if finished.returncode != code:
        raise SystemExit(f"quiesce ended with {finished.returncode}: {finished.stdout.decode()}")
    return json.loads(finished.stdout)


def run_demo(machine: Machine, catalog: Path, say: Narrator) -> dict[str, Any]:
    vm = machine.name
    machine.wait_for_postgresql()
    say.say("installing the agent: through qemu-guest-agent, no network, no SSH, no reboot")
    quiesce("guest", "install", vm, catalog=catalog, say=say)

    say.say("starting pgbench (4 clients) and two clients that note every commit that the database acknowledges")
    machine.sql("CREATE DATABASE bench")
    machine.run("runuser -u postgres -- pgbench -i -q bench", timeout=300)
    ledger = Ledger(machine)
    ledger.start()
    machine.spawn(f"exec setsid runuser -u postgres -- {PGBENCH} bench >/run/pgbench.log 2>&1")
    time.sleep(5)

    say.say("taking a production checkpoint under load")
    node = quiesce("checkpoint", vm, "--name", "before-disaster", catalog=catalog, say=say)
    time.sleep(2)
    ledger.stop()
    machine.run("pkill -INT pgbench; sleep 0.3", check=False)
    entries = ledger.acknowledged()
    client_errors = len(ledger.errors().splitlines())
    held, released = node["guest_clock_ns"]["held"], node["guest_clock_ns"]["released"]
    before = {entry.key for entry in entries if entry.acknowledged_ns < held}
    after = {entry.key for entry in entries if entry.started_ns > released}
    stall_ms = longest_wait_ms(entries, held, released)
    checksum = machine.run(f"sha256sum {SYSTEM_FILE}").stdout.split()[0]
    say.say(
        f"consistency {node['consistency']}; {len(before)} commits acknowledged before it, {len(after)} begun after it;"
        f" longest stall a client saw {stall_ms:.0f} ms"
    )

    say.say("proving the checkpoint: a copy of it is booted aside, and PostgreSQL in it tells how it started")
    verified = quiesce("verify", f"{vm}@before-disaster", catalog=catalog, say=say)["proof"]

    say.say("ruining the VM: a table dropped, the data directory emptied, the init program overwritten")
    machine.sql("DROP TABLE pgbench_accounts", database="bench")
    emptied = f"until rm -rf {DATA}/*; do sleep 0.2; done"  # PostgreSQL still runs, and makes files there
    machine.run(f"{emptied}; head -c 100000 /dev/urandom >/ruin && mv /ruin {SYSTEM_FILE} && sync")

    say.say("restoring")
    restored = quiesce("restore", f"{vm}@before-disaster", "--start", catalog=catalog, say=say)
    machine.wait_for_guest()
    machine.wait_for_postgresql()

    say.say("proving it: PostgreSQL's own log, every row, every index")
    seen = recovery(machine)
    position = node["writers"][0]["position"]
    stored = ledger.stored()
    accounts = int(machine.sql("SELECT count(*) FROM pgbench_accounts", database="bench"))
    balanced = machine.sql(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)"
        " AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
        database="bench",
    )
    proof = {
        "redo_starts": seen.redo_starts,
        "redo_starts_as_recorded": seen.redo_starts == position["redo_lsn"],
        "redo_done": seen.redo_done,
        "log_ends": seen.log_ends,
        "log_ends_as_recorded": same_end(seen.log_ends, position["insert_lsn"]),
        "redo_bytes_replayed": seen.redo_bytes(),
        "acknowledged_before": len(before),
        "acknowledged_missing": len(before - stored),
        "acknowledged_after": len(after),
        "after_present": len(stored & after),
        "pgbench_balanced": balanced == "t" and accounts == 100_000,
        "amcheck_errors": amcheck_errors(machine),
        "system_file_restored": machine.run(f"sha256sum {SYSTEM_FILE}").stdout.split()[0] == checksum,
        "client_errors": client_errors,
    }
    return {
        "consistency": node["consistency"],
        "stall_ms": round(stall_ms, 1),
        "window_ms": node["stall_ms"],
        "phases_ms": {name: round(value / 1000, 1) for name, value in node["phases_us"].items()},
        "writers": [{key: writer[key] for key in ("id", "grade", "position")} for writer in node["writers"]],
        "verify": {
            "state": verified["state"],
            "seconds": verified["seconds"],
            "writers": [
                {key: each.get(key) for key in ("id", "claimed", "state", "redo_bytes")} for each in verified["writers"]
            ],
        },
        "safety_checkpoint": restored["safety"]["consistency"],
        "kvm": kvm_works(),
        "proof": proof,
    }


def holds(result: dict[str, Any]) -> bool:
    """Whether the demo proved what it should."""
    proof = result["proof"]
    return (
        result["consistency"] == "application"
        and all(writer["grade"] == "stands-still" for writer in result["writers"])
        and result["verify"]["state"] == "proven"
        and proof["redo_starts_as_recorded"]
        and proof["log_ends_as_recorded"]
        and proof["acknowledged_before"] > 0
        and proof["acknowledged_after"] > 0
        and proof["acknowledged_missing"] == 0
        and proof["after_present"] == 0
        and proof["amcheck_errors"] == 0
        and proof["pgbench_balanced"]
        and proof["system_file_restored"]
        and proof["client_errors"] == 0
    )


def window_ms(node: dict[str, Any]) -> float:
    """Time from the first hold to the last release of a checkpoint, by this host's clock, in milliseconds."""
    return float(sum(node["phases_us"].values())) / 1000


def conclude(result: dict[str, Any], left: list[str], say: Narrator, *, good: bool) -> int:
    """Prints the result and whether it is good. Returns the exit code."""
    result["left_behind"] = left
    print(json.dumps(result, indent=2))
    if not good or left:
        say.say("the proof does not hold")
        return 1
    say.say("all of it holds")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/demo", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print nothing but the result, as JSON")
    say = Narrator(silent=parser.parse_args().json)
    say.say(f"database {DATABASE!r} on a Debian 13 VM with PostgreSQL 17, {'KVM' if kvm_works() else 'without KVM'}")
    image = build()
    say.say("booting")
    with tempfile.TemporaryDirectory(prefix="quiesce-demo-") as scratch, Machine(image) as machine:
        result = run_demo(machine, Path(scratch) / "catalog.db", say)
    return conclude(result, left_behind(), say, good=holds(result))


if __name__ == "__main__":
    sys.exit(main())
