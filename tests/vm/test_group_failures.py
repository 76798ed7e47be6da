"""A group's checkpoint while this host's process, an agent, a VM or a writer fails, in every phase: every guest writes again
within the deadline, and all servers have their part or none has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import lab.ready
from lab import Image, Machine, misbehaving, ticker
from lab.ledger import Ledger
from lab.standstill import Standstill
from quiesce.operations.doctor import MENDED
from tests.host import Quiesce, interruptible

WINDOW_S = 6.0
LIMIT_MS = (WINDOW_S + 1) * 1000
PHASES = ("prepare", "hold", "freeze", "switch", "thaw", "release")
WRITER_PHASES = ("prepare", "hold", "release", "post-checkpoint")
QUICK = (("host", "switch"), ("writer", "hold"), ("vm", "switch"))
LONG = (
    tuple(("host", phase) for phase in PHASES),
    tuple(("agent", phase) for phase in PHASES),
    tuple(("writer", phase) for phase in WRITER_PHASES),
    *((("vm", phase),) for phase in PHASES),
)

CHECKPOINT_THAT_HALTS = """
import sys, threading
from quiesce.cli import main
from quiesce.taking.participant import VmParticipant
from quiesce.taking.production import RunningPart

halt_at, victim = sys.argv[1:3]
go_on = threading.Event()

def halting(real, phase):
    def step(self, *arguments):
        if phase(*arguments) != halt_at or go_on.is_set():
            return real(self, *arguments)
        if self._vm.name != victim:
            go_on.wait()
            return real(self, *arguments)
        try:
            return real(self, *arguments)
        finally:
            print("HALTED", flush=True)
            sys.stdin.readline()
            go_on.set()
    return step

RunningPart.prepare = halting(RunningPart.prepare, lambda *_: "prepare")
VmParticipant._ask = halting(VmParticipant._ask, lambda step, _: step.action.value)
VmParticipant._switch = halting(VmParticipant._switch, lambda: "switch")
sys.argv = ["quiesce", *sys.argv[3:]]
main.main()
"""
"""The real program, which halts when the victim has come through a phase and the others have not begun with it."""


@contextmanager
def reaped(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Whatever the test comes to, the process does not outlive it."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Shop:
    """Two servers, each with clients that write all the time. The second one is the victim."""

    def __init__(self, web: Machine, db: Machine, quiesce: Quiesce) -> None:
        self.servers = (web, db)
        self.victim = db
        self._quiesce = quiesce
        self._ledgers = {server.name: Ledger(server) for server in self.servers}
        quiesce("group", "create", "shop", f"{web.name}:front", f"{db.name}:back")

    def parts(self) -> list[list[str]]:
        """The checkpoints of each server, by name."""
        return [[node["name"] for node in self._quiesce("tree", server.name)["checkpoints"]] for server in self.servers]

    def images(self) -> set[Path]:
        return {path for server in self.servers for path in server.directory.glob("*.qcow2")}

    def fail(self, how: str, phase: str) -> None:
        """One checkpoint in which this fails, and what must hold afterwards."""
        print(f"[{time.monotonic():.3f}] {how} at {phase}")
        before, images = self.parts(), self.images()
        assert before[0] == before[1]
        for server in self.servers:
            self._ledgers[server.name].forget()
            ticker.forget(server)
        with Standstill(self.servers) as standstill:
            code = self._hang_writer(phase) if how == "writer" else self._kill(how, phase)
            for server in self.servers:
                if how != "vm" or server is not self.victim:
                    self._assert_writes_again(server, standstill)
        assert self._quiesce.run("doctor", "--repair", timeout=300).returncode in (0, MENDED)
        assert [item for item in self._quiesce("doctor") if item["findings"]] == []
        after = self.parts()
        assert after[0] == after[1], f"half a group is left: {after}"
        assert (after != before) == (code == 0)
        if after == before:
            assert self.images() == images

    def _checkpoint(self, program: list[str | Path], name: str) -> subprocess.Popen[str]:
        words = ["group", "checkpoint", "shop", "--name", name, "--window", str(WINDOW_S), "--json"]
        return subprocess.Popen(
            [*program, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=self._quiesce.environment, preexec_fn=interruptible,
        )  # fmt: skip

    def _kill(self, how: str, phase: str) -> int:
        """Returns the exit code of the command, negative if that was killed."""
        program: list[str | Path] = [sys.executable, "-c", CHECKPOINT_THAT_HALTS, phase, self.victim.name]
        with reaped(self._checkpoint(program, f"{how} killed at {phase}")) as process:
            assert process.stdin and process.stdout and process.stderr
            assert process.stdout.readline() == "HALTED\n", process.stderr.read()
            if how == "host":
                process.kill()
            elif how == "agent":
                self.victim.run("kill -KILL $(pgrep -P $(systemctl show -P MainPID quiesce-agent))")
            else:
                os.kill(int(Path(f"/run/libvirt/qemu/{self.victim.name}.pid").read_text()), signal.SIGKILL)
            output, errors = process.communicate(None if how == "host" else "go on\n", timeout=150)
            print(output, errors)
            code = process.returncode
        assert code == -signal.SIGKILL if how == "host" else code in (0, 5, 6, 8)
        time.sleep(WINDOW_S if how == "host" else 0)
        return code

    def _hang_writer(self, phase: str) -> int:
        misbehaving.start(self.victim, f"--hang {phase}")
        with reaped(self._checkpoint([Quiesce.program], f"writer hangs at {phase}")) as process:
            if phase == "prepare":  # may take minutes, as nobody waits for it; whoever has no patience ends it
                time.sleep(WINDOW_S)
                process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=150)
            print(output, errors)
        misbehaving.stop(self.victim)
        # A guest that is too slow to say so in time is given up, and nobody knows what it waited for.
        slow = f"the agent of {self.victim.name} does not answer"
        assert "test" in output + errors or slow in output + errors or phase == "prepare"
        assert process.returncode == {"prepare": 130, "hold": 6, "release": 6, "post-checkpoint": 0}[phase]
        return process.returncode

    def _assert_writes_again(self, server: Machine, standstill: Standstill) -> None:
        """The database and both filesystems, and nobody waited longer for them than the deadline and a second."""
        ledger = self._ledgers[server.name]
        ticks, entries = ticker.ticks(server), len(ledger.acknowledged())
        time.sleep(1)
        assert ticker.ticks(server) > ticks, f"the filesystems of {server.name} are still frozen"
        assert len(ledger.acknowledged()) > entries, f"the database of {server.name} is still held"
        tick_ms = standstill.longest_ms(server, ticker.waits(server))
        commit_ms = standstill.longest_ms(server, ledger.acknowledged())
        print(f"{server.name}: longest wait of filesystems {tick_ms:.0f} ms, of the database {commit_ms:.0f} ms")
        assert tick_ms < LIMIT_MS
        assert commit_ms < LIMIT_MS
        assert ledger.errors() == ""


def _id(cases: tuple[tuple[str, str], ...]) -> str:
    return "quick" if cases is QUICK else "-".join(dict.fromkeys(how for how, _ in cases))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("cases", [QUICK, *(pytest.param(cases, marks=pytest.mark.long) for cases in LONG)], ids=_id)
def test_all_parts_or_none(cases: tuple[tuple[str, str], ...], image: Image, quiesce: Quiesce) -> None:
    """A VM that was killed can be started afterwards, and in the long form it boots."""
    saved = lab.ready.with_clients(image)
    with Machine(image, start_from=saved) as web, Machine(image, start_from=saved) as db:
        shop = Shop(web, db, quiesce)
        for how, phase in cases:
            shop.fail(how, phase)
        if "vm" in dict(cases):
            db.domain.create()
            if cases is not QUICK:
                db.wait_for_guest()
                db.wait_for_postgresql()
        else:
            assert quiesce("group", "checkpoint", "shop", "--name", "afterwards", "--window", "30")
