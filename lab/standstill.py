"""How long this machine itself stood still, so that a test that judges a time judges the program and not the machine.

One rule for all tests: a time is judged less what the machine stood still in it. It stood still while a thread that only sleeps
woke up late, while a byte took long to be on the disk, and while the QEMU of a guest, or this process, was ready to run and was
given no processor: a machine that runs tests may share its disks and processors with others.

    with within(1.5):                          # something on this host
        program.stop()
    wait_for(lambda: not program.lives, 5)

    with Standstill([guest]) as standstill:    # clients in a guest, who note when they asked and when they were answered
        ...
    assert standstill.longest_ms(guest, ledger.acknowledged()) < 4000
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from lab.machine import Machine
    from lab.waits import Acknowledged

EVERY_S = 0.05
PADDING_S = 0.1
"""A guest's clock is known about that well, and what is in a period is noticed so much later."""


class Standstill:
    """Watches from entering to leaving."""

    def __init__(self, guests: Sequence[Machine] = ()) -> None:
        self._guests = guests
        self._lost: list[tuple[float, float]] = []
        """When it was noticed, by this host's CLOCK_MONOTONIC, and how long it had been; both in seconds."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def during_s(self, from_s: float, to_s: float) -> float:
        """How long it stood still in this period of this host's CLOCK_MONOTONIC; never longer than the period."""
        lost = sum(length for noticed, length in list(self._lost) if noticed >= from_s and noticed - length <= to_s + PADDING_S)
        return min(lost, to_s - from_s)

    def net_ms(self, guest: Machine, from_ns: int, to_ns: int) -> float:
        """The length of a period of the guest's CLOCK_MONOTONIC, less what the machine stood still in it."""
        return self._net_ms(clock_offset_ns(guest), from_ns, to_ns)

    def longest_ms(self, guest: Machine, waits: Iterable[Acknowledged]) -> float:
        """The longest of the waits of a guest's clients, each less what the machine stood still in it."""
        offset_ns, longest_ms = clock_offset_ns(guest), 0.0
        for wait in sorted(waits, key=lambda wait: wait.started_ns - wait.acknowledged_ns):
            if wait.acknowledged_ns - wait.started_ns <= longest_ms * 1e6:  # nor does any after it, less whatever
                break
            longest_ms = max(longest_ms, self._net_ms(offset_ns, wait.started_ns, wait.acknowledged_ns))
        return longest_ms

    def _net_ms(self, offset_ns: int, from_ns: int, to_ns: int) -> float:
        began_s, ended_s = (from_ns + offset_ns) / 1e9, (to_ns + offset_ns) / 1e9
        return 1000 * (ended_s - began_s - self.during_s(began_s, ended_s))

    def _watch(self) -> None:
        before, delays = time.monotonic(), self._delays_ns()
        with tempfile.TemporaryFile(dir=self._guests[0].directory if self._guests else None) as file:
            while not self._over.wait(EVERY_S):
                if self._guests:
                    os.pwrite(file.fileno(), b"x", 0)
                    os.fsync(file.fileno())
                now, later = time.monotonic(), self._delays_ns()
                delayed_ns = max((later[thread] - delays.get(thread, 0) for thread in later), default=0)
                lost = max(now - before - EVERY_S, delayed_ns / 1e9)
                if lost > EVERY_S / 10:
                    self._lost.append((now, lost))
                before, delays = now, later

    def _delays_ns(self) -> dict[str, int]:
        """By thread's number: how long in all it was ready to run and had no processor."""
        found = {}
        for process in (str(os.getpid()), *(_qemu(guest) for guest in self._guests)):
            with contextlib.suppress(OSError):  # one ended just now, or this kernel does not say
                for thread in list(Path(f"/proc/{process}/task").iterdir()):
                    found[thread.name] = int((thread / "schedstat").read_text().split()[1])
        return found


def _qemu(guest: Machine) -> str:
    """Its process; empty where it is off."""
    with contextlib.suppress(OSError):
        return Path(f"/run/libvirt/qemu/{guest.name}.pid").read_text().strip()
    return ""


def clock_offset_ns(guest: Machine) -> int:
    """This host's CLOCK_MONOTONIC less the guest's; right to some tens of milliseconds."""
    best = (1 << 62, 0)
    for _ in range(5):
        asked = time.monotonic_ns()
        uptime = float(guest.run("cat /proc/uptime").stdout.split()[0])
        answered = time.monotonic_ns()
        best = min(best, (answered - asked, (asked + answered) // 2 - int(uptime * 1e9)))
    return best[1]


@contextlib.contextmanager
def within(seconds: float, *, at_least: float = 0) -> Iterator[None]:
    """Raises AssertionError if the block took longer than so many seconds and what the machine stood still, or was over sooner
    than `at_least`."""
    with Standstill() as standstill:
        began = time.monotonic()
        yield
        ended = time.monotonic()
    took, lost = ended - began, standstill.during_s(began, ended)
    assert took >= at_least, f"it took only {took:.3f} s, not {at_least:g} s"
    assert took - lost < seconds, f"it took {took:.3f} s, not {seconds:g} s; the machine stood still for {lost:.3f} s of it"


def wait_for(condition: Callable[[], object], seconds: float = 10, *, every_s: float = 0.005) -> None:
    """Returns when the condition is true. Raises AssertionError after so many seconds, and what the machine stood still."""
    began = time.monotonic()
    with Standstill() as standstill:
        while not condition():
            took = time.monotonic() - began
            lost = standstill.during_s(began, began + took)
            assert took - lost < seconds, f"not in {seconds:g} s; the machine stood still for {lost:.3f} s more"
            time.sleep(every_s)
