"""Times in tests: judged less what the machine stood still in them, and by nothing else."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from lab import standstill
from lab.standstill import Standstill, wait_for, within
from lab.waits import Entry

JUDGED = re.compile(
    r"\b(assert|while|if|until)\b.*(CLOCK *[-<>]|[<>]=? *CLOCK)".replace(
        "CLOCK", r"time\.(monotonic|time|perf_counter)(_ns)?\(\)"
    )
)
"""A comparison with a clock. `deadline = time.monotonic() + 5` alone judges nothing."""


def test_no_test_judges_a_time_by_itself() -> None:
    """Broken: a test would fail because this machine was busy, and somebody look for the fault in the program."""
    tests = Path(__file__).parents[1]
    found = {
        f"{path.relative_to(tests)}:{number}: {line.strip()}"
        for path in sorted(tests.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if JUDGED.search(line)
    }
    assert found == set(), "use within, wait_for or Standstill of lab/standstill.py"


def test_what_takes_too_long_fails() -> None:
    with pytest.raises(AssertionError, match=r"it took 0\.\d+ s, not 0\.05 s"), within(0.05):
        time.sleep(0.2)
    with pytest.raises(AssertionError, match="it took only"), within(5, at_least=0.1):
        pass
    with pytest.raises(AssertionError, match=r"not in 0\.05 s"):
        wait_for(lambda: False, 0.05)
    with within(1, at_least=0.05):
        time.sleep(0.06)


def test_what_the_machine_stood_still_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleep of 0.3 s while nothing else could run, either."""

    class Late(threading.Event):
        def wait(self, _timeout: float | None = None) -> bool:
            return super().wait(0.25)

    monkeypatch.setattr(standstill.threading, "Event", Late)
    with within(0.2):
        time.sleep(0.35)


def test_only_what_was_in_the_period_counts() -> None:
    """Broken: a standstill an hour ago would excuse a guest that is frozen for too long."""
    found = Standstill()
    found._lost = [(10.0, 2.0), (20.0, 1.0)]
    assert found.during_s(0, 5) == 0
    assert found.during_s(7, 15) == 2.0
    assert found.during_s(9, 25) == 3.0
    assert found.during_s(9.5, 10.5) == 1.0  # no longer than the period
    assert found.during_s(21, 30) == 0


def test_waits_in_a_guest_are_judged_by_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock began 100 s after this host's."""
    monkeypatch.setattr(standstill, "clock_offset_ns", lambda _: 100 * 10**9)
    found = Standstill()
    found._lost = [(110.0, 2.0)]
    waits = [Entry("during", 7 * 10**9, 10 * 10**9), Entry("later", 20 * 10**9, 22 * 10**9)]
    assert found.longest_ms(None, waits) == pytest.approx(2000)  # type: ignore[arg-type]
    assert found.net_ms(None, 7 * 10**9, 10 * 10**9) == pytest.approx(1000)  # type: ignore[arg-type]
