"""The shop: one application on three servers, whose books agree after every checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import network
from lab.demo import Narrator
from lab.shop import campaign, demo
from lab.shop.servers import Servers


@pytest.mark.timeout(1500)
def test_the_shop(tmp_path: Path) -> None:
    """The demo, and the short form of the campaign: a checkpoint by quiesce, and one by virsh in turn. The demo restores
    a checkpoint; the campaign reads its checkpoints in another machine."""
    say = Narrator(silent=False)
    with Servers() as servers:
        result = demo.run_demo(servers, tmp_path / "catalog.db", say)
        print(result)
        assert demo.holds(result)
        # None went on before the last had switched, so each was held for longer than between the first and the last switch.
        assert all(result["skew_ms"] < member["stall_ms"] < 40_000 for member in result["members"].values())
        report = campaign.run(servers, tmp_path / "catalog.db", say, rounds=1, restores=False)
        print(report)
        assert report["good"]
        assert report["in_turn"]["checkpoints"] == 1
    assert network.left_behind() == []
