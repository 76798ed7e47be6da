"""The shop: one application on three servers, whose books agree after every checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import network
from lab.demo import Narrator
from lab.shop import demo
from lab.shop.servers import Servers


@pytest.mark.timeout(1000)
def test_the_shop(tmp_path: Path) -> None:
    """One checkpoint under load, and its restore: what the campaign (`script/bench shop`) does many times, and beside virsh."""
    say = Narrator(silent=False)
    with Servers() as servers:
        result = demo.run_demo(servers, tmp_path / "catalog.db", say, prove=False)  # tests/vm/test_group_verify.py does
        print(result)
        assert demo.holds(result)
        # None went on before the last had switched, so each was held for longer than between the first and the last switch.
        assert all(result["skew_ms"] < member["stall_ms"] < 40_000 for member in result["members"].values())
    assert network.left_behind() == []
