"""A user of a guest who does his worst (lab/worst.py): no checkpoint waits for him, and no label is another for him."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lab import Machine, worst
from lab.ledger import Ledger
from tests.host import Quiesce

USER, UID = "mallory", 1234
SECONDS = {"short": 45, "long": 600}


@pytest.mark.timeout(1500)
def test_a_user_who_does_his_worst(machine: Machine, quiesce: Quiesce, request: pytest.FixtureRequest) -> None:
    """Broken: any user of a guest could keep it from being backed up, or have its label say what is not so."""
    long = request.config.getoption("--long")
    sizes = "--processes=300 --servers=40 --mounts=100" if long else "--processes=40 --servers=8 --mounts=30"
    machine.run(f"useradd -m -u {UID} {USER}")
    machine.write_file("/run/worst.py", Path(worst.__file__).read_bytes())
    session = f"systemd-run -q --scope --slice=user-{UID}.slice --unit=session-9 --uid={USER}"
    machine.spawn(f"exec setsid {session} python3 /run/worst.py {sizes} --seconds=1400 /home/{USER}/work >/run/worst.out 2>&1")
    machine.run("timeout 120 sh -c 'until grep -q \"at work\" /run/worst.out; do sleep 0.5; done'", timeout=130)
    ledger = Ledger(machine, clients=1)
    ledger.start()
    ends = time.monotonic() + SECONDS["long" if long else "short"]
    rounds = 0
    while time.monotonic() < ends or rounds < 2:
        node = quiesce("checkpoint", machine.name, timeout=200)
        required = {writer["id"]: writer["grade"] for writer in node["writers"] if writer["required"]}
        assert (node["consistency"], required) == ("application", {"postgresql:17/main": "stands-still"}), node["writers"]
        rounds += 1
    listed = [writer["id"] for writer in node["writers"] if not writer["required"]]
    assert any(id.endswith(f"@{UID}") for id in listed), listed
    ledger.stop()
    assert ledger.errors() == ""
    machine.run(f"systemctl stop user-{UID}.slice")
