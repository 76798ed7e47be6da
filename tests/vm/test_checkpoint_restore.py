"""Checkpoint, restore, delete, on a real guest, through the command line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lab import Machine
from lab.demo import Narrator, holds, run_demo
from quiesce.hypervisor.vm import Vm
from tests.host import Quiesce


def images(machine: Machine) -> set[str]:
    return {path.name for path in machine.directory.glob("*.qcow2")}


def manifests(machine: Machine) -> set[str]:
    return {path.name for path in machine.directory.glob("quiesce-*.json")}


@pytest.mark.timeout(900)
def test_the_main_job(machine: Machine, tmp_path: Path) -> None:
    """Given a database under load, when everything is ruined, then a restore brings back exactly what was acknowledged."""
    result = run_demo(machine, tmp_path / "catalog.db", Narrator(silent=True))
    assert holds(result), result


def test_checkpoint_says_what_it_is(machine: Machine, quiesce: Quiesce) -> None:
    """A checkpoint without load: its record is complete, in the catalog and in the manifest beside the images."""
    node = quiesce("checkpoint", machine.name, "--name", "quiet")
    assert node["consistency"] == "application"
    assert node["writers"][0]["grade"] == "stands-still"
    assert [(item["mountpoint"], item["state"]) for item in node["filesystems"]] == [
        ("/var/lib/postgresql", "thawed"),
        ("/", "thawed"),
    ]
    assert 0 < node["stall_ms"] < 10_000
    assert quiesce("show", f"{machine.name}@quiet") == node
    tree = quiesce("tree", machine.name)
    assert tree == {"head_parent": node["id"], "checkpoints": [node]}
    assert manifests(machine) == {f"quiesce-{node['id']}.json"}
    summary = next(vm for vm in quiesce("vms") if vm["name"] == machine.name)
    assert (summary["agent"], summary["checkpoints"]) == ("ready", 1)
    text = quiesce.run("checkpoint", machine.name, "--name", "second")
    assert "application" in text.stdout
    assert "stands-still" in text.stdout


def test_restore_of_a_vm_that_is_off_keeps_its_state(machine: Machine, quiesce: Quiesce) -> None:
    """The images of a VM that is off become the safety checkpoint as they are."""
    node = quiesce("checkpoint", machine.name, "--name", "one")
    machine.domain.destroy()
    restored = quiesce("restore", f"{machine.name}@one")
    assert restored["safety"]["consistency"] == "crash"
    assert restored["safety"]["parent"] == node["id"]
    assert quiesce("tree", machine.name)["head_parent"] == node["id"]
    assert len(images(machine)) == 6


def test_delete_merges_while_the_guest_writes(machine: Machine, quiesce: Quiesce, vm: Vm) -> None:
    """Deleting the checkpoint the VM stands on changes nothing in the guest and leaves no file."""
    before = vm.sources()
    quiesce("checkpoint", machine.name, "--name", "one")
    machine.run("head -c 3000000 /dev/urandom >/root/blob; sync; sha256sum /root/blob >/root/sum")
    machine.spawn("while :; do date +%s%N >>/root/ticks; sync /root/ticks; done")
    time.sleep(1)
    quiesce("delete", f"{machine.name}@one")
    assert vm.sources() == before
    machine.run("sha256sum -c /root/sum && e2fsck -n /dev/vda >/dev/null 2>&1; sha256sum -c /root/sum")
    assert images(machine) == {"vda.qcow2", "vdb.qcow2"}
    assert manifests(machine) == set()
    assert quiesce("tree", machine.name) == {"head_parent": None, "checkpoints": []}


@pytest.mark.long
def test_delete_of_a_branch_nobody_stands_on(machine: Machine, quiesce: Quiesce) -> None:
    """A leaf without dependents is simply removed; one with children is merged with them, while the guest runs. Without a
    guest: tests/disks/test_verbs_delete.py, test_chaos.py."""
    quiesce("checkpoint", machine.name, "--name", "one")
    safety = quiesce("restore", f"{machine.name}@one", "--start")["safety"]["name"]
    machine.wait_for_guest()
    quiesce("delete", f"{machine.name}@{safety}")
    assert len(images(machine)) == 4
    machine.wait_for_postgresql()
    quiesce("checkpoint", machine.name, "--name", "two")
    quiesce("delete", f"{machine.name}@one")
    assert [node["name"] for node in quiesce("tree", machine.name)["checkpoints"]] == ["two"]
    assert len(images(machine)) == 4
    machine.sql("SELECT 1")
