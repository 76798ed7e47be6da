"""The lab's own networks: a killed run leaves none to the next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lab.network import left_behind, mac_address, network
from lab.standstill import wait_for

OWNER = """
import time
from lab.network import network
with network() as found:
    print(found.bridge, flush=True)
    time.sleep(60)
"""


def test_a_bridge_whose_owner_was_killed_is_removed() -> None:
    """And the bridges of others who live are left alone."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with (
        network() as ours,
        subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environment) as owner,
    ):
        assert owner.stdout is not None
        theirs = Path("/sys/class/net", owner.stdout.readline().strip())
        assert theirs.is_dir()
        owner.kill()
        owner.wait()
        with network() as next_one:
            assert not theirs.exists()
            assert Path("/sys/class/net", ours.bridge).is_dir()
            assert next_one.bridge != ours.bridge
    assert left_behind() == []


def test_whoever_sends_on_a_bridge_is_heard() -> None:
    """Broken: a test that hears no frame of a copy would prove nothing."""
    with network() as net, net.listening() as heard:
        net.send_as(mac_address(7))
        wait_for(lambda: mac_address(7) in heard)
        assert mac_address(8) not in heard
    assert left_behind() == []
