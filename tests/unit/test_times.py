"""The table at the end of script/test."""

from __future__ import annotations

import json
from pathlib import Path

from tests.times import note, table


def test_tiers_and_the_slowest_tests(tmp_path: Path) -> None:
    """Also of a run that a failing tier, or somebody, has ended."""
    file = tmp_path / "times"
    note(file, tier="lint", seconds=20.4)
    for number in range(11):
        note(file, tier="unit,model", test=f"tests/unit/test_{number}.py", seconds=number)
    note(file, tier="unit,model", seconds=28)
    note(file, tier="disks", test="tests/disks/test_tree.py", seconds=90.25)
    assert table([json.loads(line) for line in file.read_text().splitlines()]).splitlines() == [
        "tier           tests    seconds",
        "lint                         20",
        "unit,model        11         28",
        "disks              1  not ended",
        "all               12         48",
        "",
        "slowest 10",
        "    90.2 s  tests/disks/test_tree.py",
        *(f"{number:>8.1f} s  tests/unit/test_{number}.py" for number in range(10, 1, -1)),
    ]
