"""A guest is never left frozen: whoever dies between freeze and thaw, it writes again within the deadline plus one second."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

import lab.ready
from lab import Image, Machine, misbehaving, ticker
from lab.ledger import Ledger
from lab.standstill import Standstill, wait_for
from lab.waits import longest_wait_ms
from quiesce.catalog.schema import operations
from quiesce.catalog.store import Catalog
from quiesce.guests import linux
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import AgentError
from quiesce.model.grades import Level
from quiesce.operations.doctor import MENDED
from quiesce.wire.messages import Prepare
from tests.host import Quiesce

WINDOW_S = 3.0

CHECKPOINT_WITH_A_HANGING_SWITCH = """
import sys, time
from quiesce.cli import main
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError

def hang(self, overlays):
    print("FROZEN", flush=True)
    time.sleep(8)
    raise HypervisorError('libvirt never did it')

Vm.switch = hang
sys.argv = ["quiesce", "checkpoint", sys.argv[1], "--window", sys.argv[2], "--json"]
main.main()
"""
"""The real program up to the last step of the freeze; then libvirt does not return."""


class Frozen:
    """A guest frozen in the middle of a checkpoint, with clients that are waiting to write."""

    def __init__(self, machine: Machine, quiesce: Quiesce, process: subprocess.Popen[str]) -> None:
        self.machine = machine
        self.process = process
        self._quiesce = quiesce

    def agent_processes(self) -> tuple[int, int, int]:
        """(service, conversation, dead-man), read through qemu-guest-agent, which needs no disk for it."""
        service = int(self.machine.run("systemctl show -P MainPID quiesce-agent").stdout)
        conversation = int(self.machine.run(f"pgrep -P {service}").stdout)
        return service, conversation, int(self.machine.run(f"pgrep -P {conversation}").stdout)

    def kill_in_guest(self, pid: int, name: str = "KILL") -> None:
        self.machine.run(f"kill -{name} {pid}")


@pytest.fixture
def machine(image: Image) -> Iterator[Machine]:
    """A running guest with the agent, whose clients write all the time."""
    with Machine(image, start_from=lab.ready.with_clients(image)) as machine:
        yield machine


@pytest.fixture
def standstill(machine: Machine) -> Iterator[Standstill]:
    with Standstill([machine]) as standstill:
        yield standstill


@pytest.fixture
def frozen(machine: Machine, quiesce: Quiesce, standstill: Standstill) -> Iterator[Callable[[], Frozen]]:
    """Freezes on demand; afterwards looks at what the guest's clients lived through."""
    time.sleep(1)
    Ledger(machine).forget()
    ticker.forget(machine)
    processes = []

    def freeze() -> Frozen:
        process = subprocess.Popen(
            [sys.executable, "-c", CHECKPOINT_WITH_A_HANGING_SWITCH, machine.name, str(WINDOW_S)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=quiesce.environment,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "FROZEN\n", process.stderr and process.stderr.read()
        return Frozen(machine, quiesce, process)

    yield freeze
    for process in processes:
        process.kill()
        process.communicate()


def assert_released_in_time(machine: Machine, standstill: Standstill, *, at_least_ms: float) -> None:
    """Both filesystems and the database took writes again within the deadline plus one second."""
    before = ticker.ticks(machine)
    time.sleep(1)
    assert ticker.ticks(machine) != before, "the filesystems are still frozen"
    ledger = Ledger(machine)
    entries = ledger.acknowledged()
    time.sleep(1)
    assert len(ledger.acknowledged()) > len(entries), "the database is still held"
    limit_ms = (WINDOW_S + 1) * 1000
    for what, waits in (("filesystems", ticker.waits(machine)), ("database", ledger.acknowledged())):
        longest_ms, net_ms = longest_wait_ms(waits), standstill.longest_ms(machine, waits)
        print(f"longest wait: {what} {longest_ms:.0f} ms, less this host's standstill {net_ms:.0f} ms of {limit_ms:.0f} ms")
        assert at_least_ms < longest_ms
        assert net_ms < limit_ms
    assert machine.run("cat /sys/kernel/rcu_expedited").stdout == "0\n"
    assert ledger.errors() == ""


def assert_nothing_left(machine: Machine, quiesce: Quiesce) -> None:
    """No checkpoint was recorded, no overlay remains, and the next checkpoint works."""
    assert quiesce("tree", machine.name)["checkpoints"] == []
    assert {path.name for path in machine.directory.glob("*.qcow2")} == {"vda.qcow2", "vdb.qcow2"}
    assert quiesce("checkpoint", machine.name, "--name", "afterwards")["consistency"] == "application"


def unfinished(quiesce: Quiesce) -> int:
    """Operations the journal has as begun and not ended."""
    catalog = Catalog(f"sqlite:///{quiesce.environment['QUIESCE_CATALOG']}")
    with catalog.database.transaction() as connection:
        rows = connection.execute(operations.select().where(operations.c.finished.is_(None))).all()
    catalog.close()
    return len(rows)


def test_host_process_killed(machine: Machine, quiesce: Quiesce, frozen: Callable[[], Frozen], standstill: Standstill) -> None:
    """The agent sees the port hang up and releases at once, long before the deadline."""
    window = frozen()
    time.sleep(1)
    window.process.kill()
    assert window.process.wait() == -signal.SIGKILL
    assert_released_in_time(machine, standstill, at_least_ms=300)  # a client may have asked long after the freeze
    assert standstill.longest_ms(machine, ticker.waits(machine)) < 2500
    assert unfinished(quiesce) == 1
    assert quiesce("doctor", machine.name, "--repair", expect=MENDED)[0]["state"] == "mended"
    assert_nothing_left(machine, quiesce)


@pytest.mark.parametrize("step", ["prepare", "hold"])
def test_host_gone_in_the_middle_of_a_step(machine: Machine, step: str) -> None:
    """Seen when the step ends: not at the deadline, nor only when the next host comes."""
    misbehaving.start(machine, f"--delay {step}=3000")
    service = machine.run("systemctl show -P MainPID quiesce-agent").stdout.strip()
    with contextlib.closing(Vm("qemu:///system", machine.name)) as vm, linux.linux_guest(vm) as guest:
        with ThreadPoolExecutor(1) as thread:
            if step == "prepare":
                asked = thread.submit(guest.prepare, Prepare(60_000, insist=False), 60)
            else:
                guest.prepare(Prepare(60_000, insist=False), 60)
                asked = thread.submit(guest.hold, Level.BACK_END, 30)
            time.sleep(1)
            guest.close()
            with pytest.raises(AgentError, match="was lost"):
                asked.result()
        assert machine.run(f"pgrep -P {service}").stdout, "the step was over before"
        machine.run(f"while pgrep -P {service}; do sleep 0.2; done", timeout=15)


def test_host_process_stopped(machine: Machine, quiesce: Quiesce, frozen: Callable[[], Frozen], standstill: Standstill) -> None:
    """The port stays open and silent: the guest's own deadline counts. Going on later, the host reports a failure."""
    window = frozen()
    window.process.send_signal(signal.SIGSTOP)
    time.sleep(WINDOW_S + 1)
    assert_released_in_time(machine, standstill, at_least_ms=1000)
    window.process.send_signal(signal.SIGCONT)
    output, _ = window.process.communicate(timeout=60)
    assert window.process.returncode in (5, 6, 8), output
    assert_nothing_left(machine, quiesce)


def test_switch_that_hangs_is_a_failure(machine: Machine, quiesce: Quiesce, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt returns after the deadline: the guest was released long before, the attempt failed, nothing is left."""
    from quiesce.context import Context
    from quiesce.model.errors import ConsistencyError
    from quiesce.operations.checkpoint import checkpoint

    real = Vm.switch

    def late(self: Vm, overlays: dict[str, str]) -> None:
        time.sleep(WINDOW_S + 1)
        real(self, overlays)

    monkeypatch.setattr(Vm, "switch", late)
    catalog = Catalog(f"sqlite:///{quiesce.environment['QUIESCE_CATALOG']}")
    context = Context("qemu:///system", catalog, lambda _: None)
    with pytest.raises(ConsistencyError, match="would only be crash-consistent"):
        checkpoint(context, machine.name, name="late", window_s=WINDOW_S)
    monkeypatch.undo()
    catalog.close()
    assert_nothing_left(machine, quiesce)


@pytest.mark.parametrize("victim", ["conversation", "service"])
def test_agent_killed(
    machine: Machine, quiesce: Quiesce, frozen: Callable[[], Frozen], standstill: Standstill, victim: str
) -> None:
    """The dead-man sees its pipe close and thaws at once; the database drops what the dead session held."""
    window = frozen()
    service, conversation, deadman = window.agent_processes()
    window.kill_in_guest(service if victim == "service" else conversation)
    assert_released_in_time(machine, standstill, at_least_ms=0)
    output, _ = window.process.communicate(timeout=90)
    assert window.process.returncode in (5, 6), output
    assert "agent died" in machine.run("cat /run/quiesce/last-rescue").stdout
    assert machine.run(f"kill -0 {deadman}", check=False).returncode != 0
    assert_nothing_left(machine, quiesce)


def test_agent_stopped(machine: Machine, quiesce: Quiesce, frozen: Callable[[], Frozen], standstill: Standstill) -> None:
    """A stopped agent holds its sessions and does nothing: the dead-man thaws at the deadline and kills it."""
    window = frozen()
    _service, conversation, _deadman = window.agent_processes()
    window.kill_in_guest(conversation, "STOP")
    time.sleep(WINDOW_S)
    assert_released_in_time(machine, standstill, at_least_ms=1000)
    output, _ = window.process.communicate(timeout=90)
    assert window.process.returncode in (5, 6), output
    assert "deadline passed" in machine.run("cat /run/quiesce/last-rescue").stdout
    assert_nothing_left(machine, quiesce)


def test_deadman_killed(machine: Machine, quiesce: Quiesce, frozen: Callable[[], Frozen], standstill: Standstill) -> None:
    """With the dead-man gone the agent itself still keeps the deadline."""
    window = frozen()
    window.kill_in_guest(window.agent_processes()[2])
    time.sleep(WINDOW_S)
    assert_released_in_time(machine, standstill, at_least_ms=1000)


def test_libvirt_killed(machine: Machine, quiesce: Quiesce, frozen: Callable[[], Frozen], standstill: Standstill) -> None:
    """The daemon takes the port with it: the agent releases, the host reports failure, and the VM runs on."""
    window = frozen()
    with restarted_libvirt(machine):
        time.sleep(0.5)
    assert_released_in_time(machine, standstill, at_least_ms=0)
    output, _ = window.process.communicate(timeout=90)
    assert window.process.returncode not in (0, 1), output


@contextmanager
def restarted_libvirt(machine: Machine) -> Iterator[None]:
    """Kills the daemon without warning; starts it again after the block as bootstrap does."""
    os.kill(int(Path("/run/libvirtd.pid").read_text()), signal.SIGKILL)
    yield
    if Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "restart", "libvirtd.service"], check=True)
    else:
        subprocess.run(["script/bootstrap"], check=True)

    def back() -> bool:
        with contextlib.suppress(libvirt.libvirtError, TimeoutError):
            machine.reconnect()
            machine.wait_for_guest(timeout=5)
            return True
        return False

    wait_for(back, 30)
