"""Kills quiesce, libvirt and QEMU at every step of every verb, runs `quiesce doctor --repair`, and counts what is lost."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from lab import Machine, build, ticker, victim
from lab.aside import aside
from lab.bare import directory, restart_libvirt
from lab.forest import Disks, Forest, faults, read
from lab.grove import CAMPAIGNS, TIMEOUT_S, Tally, campaign
from lab.hands import campaign as hands
from lab.machine import left_behind
from lab.ready import ready
from lab.standstill import Standstill
from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.model.grades import Consistency
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.doctor import doctor

WORKERS = 3
"""Verbs tried beside each other, each on a VM of its own. More than cores: a VM that starts or stops mostly waits."""
WINDOW_S = 3.0
FREEZES = 3
"""Checkpoints of a real guest that are killed, in the short form."""
ASIDE = "aside"
"""Names the campaign against verbs that boot copies."""


def in_the_middle_of_a_merge(tally: Tally, narrate: Callable[[str], None]) -> None:
    """Restarts libvirtd, and kills QEMU, while about 200 MiB are merged: once by an active commit, once in the middle of the
    chain."""
    with directory() as path:
        forest = Forest(path, size=512 * 1024 * 1024)
        try:
            _large_merge(forest, tally, narrate)
        finally:
            forest.remove()


def _large_merge(forest: Forest, tally: Tally, narrate: Callable[[str], None]) -> None:
    catalog = str(forest.bare.directory / "catalog" / "catalog.db")
    head: Disks = {}
    nodes: dict[str, Disks] = {}
    for number, name in enumerate(("one", "two", "three"), 1):
        for target in ("vda", "vdb"):
            forest.write(target, (number - 1) * 64 * 1024 * 1024, 200 * 1024 * 1024, number)
        head = {target: read(source) for target, source in sorted(forest.sources().items())}
        checkpoint(forest.context, forest.name, name=name, required=Consistency.CRASH)
        nodes[name] = head
    forest.write("vda", 0, 200 * 1024 * 1024, 9)
    head = head | {"vda": read(forest.sources()["vda"])}
    forest.save("large")
    with tempfile.TemporaryDirectory() as scratch:
        for disaster in (_restart_libvirt, _kill_qemu):
            for name in ("three", "two"):
                forest.put_back("large")
                forest.start()
                process = victim.start(["delete", f"{forest.name}@{name}"], catalog, Path(scratch) / "output")
                in_time = _wait_for_job(forest)
                disaster(forest)
                process.join(TIMEOUT_S)
                tally.kills += 1
                forest.reopen()
                doctor(forest.context, None, repair=True)
                left = {other: disks for other, disks in nodes.items() if other != name}
                wrong = faults(forest, left, head)
                tally.lost += len(wrong.lost)
                tally.orphans += len(wrong.orphans)
                what = f"{disaster.__name__[1:].replace('_', ' ')} while {name!r} was merged"
                if wrong:
                    tally.notes.append(f"{what}: {wrong}")
                if not in_time:
                    tally.notes.append(f"{what}: the merge had ended before")
                if not forest.running:
                    forest.start()
                narrate(what)


def _wait_for_job(forest: Forest) -> bool:
    """Waits until a merge runs. Returns False if none was seen within 30 s."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for target in ("vda", "vdb"):
            info = forest.bare.domain.blockJobInfo(target, 0)
            if info and info["cur"] < info["end"]:
                return True
        time.sleep(0.005)
    return False


def _restart_libvirt(forest: Forest) -> None:
    restart_libvirt()
    forest.bare.reconnect()


def _kill_qemu(forest: Forest) -> None:
    os.kill(int(Path(f"/run/libvirt/qemu/{forest.name}.pid").read_text()), signal.SIGKILL)
    while forest.running:
        time.sleep(0.02)


def freezing(tally: Tally, times: int, narrate: Callable[[str], None], dice: random.Random) -> None:
    """Kills the host's process at random moments of a checkpoint of a real guest. The guest must write again in time."""
    image = build()
    with tempfile.TemporaryDirectory() as scratch, Machine(image, start_from=ready(image)) as machine:
        ticker.start(machine)
        catalog, output = f"{scratch}/catalog.db", Path(scratch) / "output"
        words = ["checkpoint", machine.name, "--window", str(WINDOW_S), "--require", "filesystem", "--name"]
        started = time.monotonic()
        process = victim.start([*words, "whole"], catalog, output)
        process.join(TIMEOUT_S)
        took = time.monotonic() - started
        if process.exitcode != 0:
            raise SystemExit(f"the checkpoint of a guest ended with {process.exitcode}:\n{output.read_text()}")
        for number in range(times):
            ticker.forget(machine)
            with Standstill([machine]) as standstill:
                process = victim.start([*words, f"killed {number}"], catalog, output)
                process.join(dice.uniform(took / 3, took))
                process.kill()
                process.join(TIMEOUT_S)
                tally.kills += 1
                time.sleep(WINDOW_S + 1)
                before = ticker.ticks(machine)
                time.sleep(0.5)
                longest_ms = standstill.longest_ms(machine, ticker.waits(machine))
            tally.frozen_over_deadline += ticker.ticks(machine) == before or longest_ms > (WINDOW_S + 1) * 1000
            store = Catalog(f"sqlite:///{catalog}")
            doctor(Context("qemu:///system", store, lambda _: None), machine.name, repair=True)
            found = doctor(Context("qemu:///system", store, lambda _: None), machine.name, repair=False)
            tally.orphans += sum(len(item.found) for item in found)
            store.close()
    narrate(f"a real guest: its checkpoint killed at {times} random moments")


def run(*, only: str | None, quick: bool, seed: int, narrate: Callable[[str], None]) -> Tally:
    total = Tally()
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as workers:
        names = [name for name in CAMPAIGNS if only in (None, name)]
        futures = [workers.submit(campaign, name, quick, seed) for name in names]
        try:
            for future in as_completed(futures):
                tally, said = future.result()
                total.add(tally)
                for line in said:
                    narrate(line)
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise
    if only in (None, ASIDE):
        aside(total, 1 if quick else 15, narrate, random.Random(seed))  # noqa: S311 - no secret
    if not only:
        in_the_middle_of_a_merge(total, narrate)
        freezing(total, FREEZES if quick else 10 * FREEZES, narrate, random.Random(seed))  # noqa: S311 - no secret
    total.left += left_behind()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/chaos", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print only the result, as JSON")
    parser.add_argument(
        "--quick", action="store_true", help="each verb with the VM in one power state only, and one random moment each"
    )
    parser.add_argument("--only", choices=[*CAMPAIGNS, ASIDE], help="this verb, or these, alone; on disks without a guest")
    parser.add_argument("--seed", type=int, default=None, help="of the random moments, to have them again")
    parser.add_argument(
        "--hands", type=int, metavar="N", help="kill nothing; instead let others act N times between and during the verbs"
    )
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    if arguments.hands is not None:
        words = hands.command("--hands", str(arguments.hands), "--seed", str(seed))
        os.execvp(words[0], words)  # noqa: S606 - no shell is wanted
    narrate: Callable[[str], Any] = lambda text: None if arguments.json else print(text, file=sys.stderr, flush=True)  # noqa: E731
    narrate(f"seed {seed}")
    tally = run(only=arguments.only, quick=arguments.quick, seed=seed, narrate=narrate)
    for note in tally.notes:
        print(f"chaos: {note}", file=sys.stderr)
    print(json.dumps(tally.json() if arguments.json else tally.json() | {"seed": seed}, indent=2))
    if tally.left:
        print(f"chaos: left on this host: {', '.join(tally.left)}", file=sys.stderr)
    sys.exit(0 if tally.good() else 1)


if __name__ == "__main__":
    main()
