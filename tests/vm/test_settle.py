"""`quiesce settle` on a real guest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab import Machine
from lab.ledger import Ledger
from tests.host import Quiesce
from tests.vm.test_verify import CLUSTER, TIMEOUT_S, domains, fingerprints

SHUT_DOWN = 1
"""DB_SHUTDOWNED in PostgreSQL's src/include/catalog/pg_control.h: as a server leaves its control file that was stopped."""


@pytest.mark.timeout(900)
def test_a_settled_checkpoint_has_nothing_to_recover(machine: Machine, quiesce: Quiesce, tmp_path: Path) -> None:
    """Broken: a checkpoint that is graded clean would recover when it starts, or lack what was committed.

    A database under load is checkpointed as by a power failure. In the settled checkpoint its server was stopped, and its
    filesystems were unmounted."""
    machine.run("rm /usr/lib/postgresql/17/bin/pg_amcheck")  # half a minute of an emulated guest; test_verify.py has it
    ledger = Ledger(machine)
    ledger.start()
    machine.run("systemctl stop quiesce-agent")
    torn = quiesce("checkpoint", machine.name, "--name", "torn", "--require", "crash", timeout=200)
    machine.run("systemctl start quiesce-agent")
    ledger.stop()
    assert (torn["consistency"], torn["writers"]) == ("crash", [])
    before = fingerprints(machine)

    settled = quiesce("settle", f"{machine.name}@torn", timeout=TIMEOUT_S)
    print(settled)
    assert (settled["name"], settled["kind"], settled["parent"]) == ("torn settled", "settled", torn["id"])
    assert settled["consistency"] == "application"
    (writer,) = settled["writers"]
    assert (writer["id"], writer["grade"]) == (CLUSTER, "clean")
    assert "recovered when it started" in writer["reason"]
    after = fingerprints(machine)
    assert {name: after[name] for name in before} == before
    assert domains().split() == [machine.name]
    assert not list(Path(machine.directory).glob("quiesce-trial-*"))

    images = {disk["target"]: disk["path"] for disk in settled["disks"]}
    assert clean_filesystem(images["vda"], tmp_path / "vda.raw")
    assert clean_filesystem(images["vdb"], tmp_path / "vdb.raw")
    dump = f"dump /17/main/global/pg_control {tmp_path / 'control'}"
    subprocess.run(["debugfs", "-R", dump, tmp_path / "vdb.raw"], check=True, capture_output=True)
    assert int.from_bytes((tmp_path / "control").read_bytes()[16:20], "little") == SHUT_DOWN
    assert quiesce("doctor", machine.name)[0]["state"] == "clean"


def clean_filesystem(image: str, raw: Path) -> bool:
    """Whether it was unmounted, so that nothing is left in its journal."""
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", image, raw], check=True)
    features = subprocess.run(["debugfs", "-R", "features", raw], check=True, capture_output=True, text=True).stdout
    assert "has_journal" in features
    return "needs_recovery" not in features
