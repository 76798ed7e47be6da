"""How long tests take: a line of JSON for each in the file that --times names, and a table of such a file.

pytest --times FILE --tier disks tests/disks
python -m tests.times FILE
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

SLOWEST = 10


class Times:
    """Adds to the file as the tests end, so that a run that is ended has its table too."""

    def __init__(self, file: Path, tier: str) -> None:
        self._file = file
        self._tier = tier
        self._began = time.monotonic()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration
        if report.when == "teardown":
            note(self._file, tier=self._tier, test=report.nodeid, seconds=self._seconds[report.nodeid])

    def pytest_sessionfinish(self) -> None:
        note(self._file, tier=self._tier, seconds=time.monotonic() - self._began)


def note(file: Path, **values: Any) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(values) + "\n")


def table(lines: list[dict[str, Any]]) -> str:
    """Tiers in their order, with tests and seconds, and the slowest tests of all. Tests of a tier run beside each other: theirs
    are more seconds in sum than the tier's."""
    tests = [line for line in lines if "test" in line]
    tiers = {line["tier"]: line["seconds"] for line in lines if "test" not in line}
    names = list(dict.fromkeys(line["tier"] for line in lines))
    rows = [("tier", "tests", "seconds")]
    for name in names:
        count = sum(test["tier"] == name for test in tests)
        rows.append((name, str(count or ""), f"{tiers[name]:.0f}" if name in tiers else "not ended"))
    rows.append(("all", str(len(tests)), f"{sum(tiers.values()):.0f}"))
    text = [f"{name:<12}{count:>8}{seconds:>11}" for name, count, seconds in rows]
    text += ["", f"slowest {SLOWEST}"]
    slowest = sorted(tests, key=lambda test: -test["seconds"])[:SLOWEST]
    text += [f"{test['seconds']:>8.1f} s  {test['test']}" for test in slowest]
    return "\n".join(text)


def main() -> None:
    """`FILE`: prints its table. `FILE TIER SECONDS`: adds a tier that is no run of pytest."""
    file = Path(sys.argv[1])
    if len(sys.argv) > 2:
        note(file, tier=sys.argv[2], seconds=float(sys.argv[3]))
        return
    print(table([json.loads(line) for line in file.read_text().splitlines()]))


if __name__ == "__main__":
    main()
