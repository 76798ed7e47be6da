"""Applications under load: held, taken, restored, booted; and each one's own log and content say whether the grade was true."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lab import Image, Machine, workloads
from lab.load import Load
from lab.proof import innodb_recovery, recovery
from lab.waits import longest_wait_ms
from tests.host import Quiesce

WINDOW_S = "40"
"""Without KVM a window takes ten times as long."""


GRADES = {
    "haproxy:haproxy.service": "clean",
    "mariadb:main": "stands-still",
    "nginx:nginx.service": "clean",
    "openldap:slapd.service": "clean",
    "pgbouncer:6432": "clean",
    "postgresql:17/main": "stands-still",
    "redis:6379": "clean",
    "sqlite:lab-notes.service": "clean",
    "valkey:6380": "clean",
    "declared:front": "clean",
}
"""What every writer of the guest must earn."""
CASE = tuple(replace(workload, pause_s=1) for workload in (*workloads.ALL_BUT_RABBITMQ, workloads.CONTAINER))
"""All applications at once, in one guest that is resumed once, as each boot of a guest costs more than all loads. The thirteen
clients leave some time to whoever shall hold them."""
DECLARED = "[Writer]\nName=front\nLevel=front-end\nCGroup=/shop.slice\nStateless=yes\n"
"""What an administrator declares of the container."""


@dataclass(frozen=True)
class Taken(Image):
    """The disks of a machine as they were at some instant."""

    images: dict[str, Path]

    @property
    def disks(self) -> dict[str, Path]:
        return self.images


def grades(node: dict[str, Any]) -> dict[str, str]:
    return {item["id"]: item["grade"] for item in node["writers"]}


STAND_STILL = ("mariadb", "web", "container")
"""Loads whose database stood still: it recovers, from and to the LSNs in its position."""


def prove(machine: Machine, load: Load, before: dict[str, set[str]], never: dict[str, set[str]]) -> None:
    """What was acknowledged before is there, what was begun later is not, and no application recovered anything that its
    grade excludes."""
    load.start_again()
    for workload in CASE:
        stored = load.stored(workload)
        assert before[workload.name] - stored == set(), f"{workload.name}: acknowledged, and lost"
        assert stored & never[workload.name] == set(), f"{workload.name}: of after the checkpoint"
        assert workload.name in STAND_STILL or load.unclean(workload) == "", workload.name
    assert not innodb_recovery(machine).damaged


@pytest.mark.timeout(900)
def test_under_load(applications: Image, server: Machine, quiesce: Quiesce, request: pytest.FixtureRequest) -> None:
    """Our checkpoint, and virsh's own with our hook: same grades, clients only wait, nothing acknowledged is lost."""
    write_configuration(server, "front", DECLARED)
    Load(server, [workloads.CONTAINER]).set_up()
    load = Load(server, CASE)
    load.start()
    node = quiesce("checkpoint", server.name, "--name", "one", "--window", WINDOW_S, timeout=300)
    load.wait_for_writes(3)
    entries = {workload.name: load.acknowledged(workload) for workload in CASE}
    assert load.errors() == ""
    held, released = node["guest_clock_ns"]["held"], node["guest_clock_ns"]["released"]
    assert node["consistency"] == "application", node
    assert grades(node) == GRADES
    assert all(item["outcome"] == "stable" for item in node["writers"])
    for workload, found in entries.items():
        print(f"{workload}: {len(found)} writes, longest wait {longest_wait_ms(found, held, released):.0f} ms")
    before = {key: {entry.key for entry in found if entry.acknowledged_ns < held} for key, found in entries.items()}
    never = {key: {entry.key for entry in found if entry.started_ns > released} for key, found in entries.items()}
    assert all(before.values())
    assert all(never.values())

    snapshot = virsh_snapshot(server)
    load.wait_for_writes(3)
    entries = {workload.name: load.acknowledged(workload) for workload in CASE}
    load.stop()
    assert load.errors() == ""
    said = server.run("journalctl -b -u quiesce-agent -o cat --no-pager").stdout
    assert [writer for writer, grade in GRADES.items() if f"{writer}: {grade}" not in said] == []
    begun, ended = snapshot.times
    before_snapshot = {key: {item.key for item in found if item.acknowledged_ns < begun} for key, found in entries.items()}
    after_snapshot = {key: {item.key for item in found if item.started_ns > ended} for key, found in entries.items()}

    # First what virsh took, as it needs the machine off: then the restored machine itself.
    quiesce("restore", f"{server.name}@one", "--discard-current", timeout=200)
    if request.config.getoption("--long"):
        with Machine(Taken(applications.directory, snapshot.images)) as other:
            prove(other, Load(other, CASE), before_snapshot, after_snapshot)
            assert recovery(other).redo_bytes() < 1024 * 1024  # our hook had it run a CHECKPOINT
    server.domain.create()
    server.wait_for_guest()
    prove(server, load, before, never)
    positions = {item["id"]: item["position"] for item in node["writers"]}
    assert recovery(server).redo_starts == positions["postgresql:17/main"]["redo_lsn"]
    seen, position = innodb_recovery(server), positions["mariadb:main"]
    assert seen.ends == position["lsn_current"], seen
    assert seen.starts in (None, position["lsn_checkpoint"]), seen  # None: there was nothing after the checkpoint


@dataclass(frozen=True)
class Snapshot:
    images: dict[str, Path]
    """The images as they were."""
    times: tuple[int, int]
    """The guest's CLOCK_MONOTONIC in nanoseconds, before and after."""


def virsh_snapshot(machine: Machine) -> Snapshot:
    """What virsh does by itself, with qemu-guest-agent. Fails if our hook refuses."""

    def clock() -> int:
        return int(machine.run("python3 -c 'import time; print(time.monotonic_ns())'").stdout)

    before = {target: Path(path) for target, path in sources(machine).items()}
    begun = clock()
    words = ["snapshot-create-as", machine.name, "--name", "theirs", "--disk-only", "--quiesce", "--no-metadata", "--atomic"]
    done = subprocess.run(["virsh", "-q", "-c", "qemu:///system", *words], capture_output=True, text=True, timeout=200)
    said = "" if done.returncode == 0 else machine.run("journalctl -b -u quiesce-agent -o cat --no-pager | tail -40").stdout
    assert done.returncode == 0, done.stderr + said
    return Snapshot(before, (begun, clock()))


def sources(machine: Machine) -> dict[str, str]:
    listing = subprocess.run(
        ["virsh", "-q", "-c", "qemu:///system", "domblklist", machine.name], check=True, capture_output=True, text=True
    )
    return dict(line.split(None, 1) for line in listing.stdout.splitlines() if line.strip())


@pytest.mark.timeout(900)
def test_rabbitmq(broker: Machine, quiesce: Quiesce, request: pytest.FixtureRequest) -> None:
    """Frozen it is said to be a crash image; stopped for the checkpoint it is clean. In the long form the second is restored:
    what was confirmed is there."""
    server = broker
    load = Load(server, [workloads.RABBITMQ])
    load.start()
    assert "rebuilds its indices" in quiesce.fails("checkpoint", server.name, "--window", WINDOW_S, code=6, timeout=300)
    node = quiesce("checkpoint", server.name, "--name", "frozen", "--require", "filesystem", "--window", WINDOW_S, timeout=300)
    (rabbit,) = (item for item in node["writers"] if item["application"] == "rabbitmq")
    assert rabbit["grade"] == "crash"
    assert int(rabbit["position"]["messages"]) > 0
    load.wait_for_writes(2)
    assert load.errors() == ""  # frozen, it only kept its clients waiting
    load.stop()
    write_configuration(server, "rabbitmq", "[Match]\nWriter=rabbitmq:*\nAction=stop\n")
    node = quiesce("checkpoint", server.name, "--name", "stopped", "--window", "60", timeout=400)
    assert (node["consistency"], grades(node)["rabbitmq:rabbitmq-server.service"]) == ("application", "clean")
    if not request.config.getoption("--long"):
        return
    confirmed = {entry.key for entry in load.acknowledged(workloads.RABBITMQ)}
    quiesce("restore", f"{server.name}@stopped", "--start", "--discard-current", timeout=200)
    server.wait_for_guest()
    load.start_again()
    assert load.unclean(workloads.RABBITMQ) == ""
    assert load.stored(workloads.RABBITMQ) >= confirmed


def write_configuration(machine: Machine, name: str, text: str) -> None:
    machine.write_file(f"/etc/quiesce/writers.d/{name}.conf", text.encode())
    machine.run(f"chmod 644 /etc/quiesce/writers.d/{name}.conf")


def report(machine: Machine, quiesce: Quiesce) -> dict[str, dict[str, Any]]:
    """What `quiesce writers` says, by id."""
    found = {item["id"]: item for item in quiesce("writers", machine.name)["writers"]}
    print(json.dumps(found, indent=1))
    return found
