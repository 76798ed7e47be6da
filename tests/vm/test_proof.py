"""Every application, under load, proven by `quiesce verify` of a production checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lab import Machine, workloads
from lab.load import Load
from tests.host import Quiesce
from tests.vm.test_verify import TIMEOUT_S
from tests.vm.test_writers import GRADES, WINDOW_S, grades, write_configuration

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
CASE = tuple(replace(workload, pause_s=1) for workload in workloads.ALL_BUT_RABBITMQ)
UNITS = "mariadb lab-shop nginx haproxy redis-server valkey-server lab-notes slapd pgbouncer"
LOOPBACK = b"""
[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip link set lo up
"""


def started_at_boot(machine: Machine, units: str) -> None:
    machine.write_file("/etc/systemd/system/lab-loopback.service", LOOPBACK)
    machine.run(f"systemctl add-wants sysinit.target lab-loopback.service; systemctl add-wants multi-user.target {units}")


def test_every_application_under_load_is_proven(server: Machine, quiesce: Quiesce) -> None:
    """Broken: a good checkpoint of some application would be called recovered or failed, or nothing would tell how it
    started."""
    started_at_boot(server, UNITS.replace(" ", ".service ") + ".service")
    load = Load(server, CASE)
    load.start()
    node = quiesce("checkpoint", server.name, "--name", "one", "--window", WINDOW_S, timeout=300)
    load.wait_for_writes(2)
    load.stop()
    assert load.errors() == ""
    assert grades(node) == {id: grade for id, grade in GRADES.items() if id != "declared:front"}
    proof = quiesce("verify", f"{server.name}@one", timeout=TIMEOUT_S)["proof"]
    print(proof)
    states = {each["id"]: each["state"] for each in proof["writers"]}
    assert states == dict.fromkeys((*grades(node), "filesystems"), "proven")
    assert proof["state"] == "proven"


def test_a_stopped_rabbitmq_is_proven(broker: Machine, quiesce: Quiesce) -> None:
    """Broken: a broker that was stopped for the checkpoint would be called damaged, or its start not be told."""
    started_at_boot(broker, "rabbitmq-server.service")
    load = Load(broker, [workloads.RABBITMQ])
    load.start()
    write_configuration(broker, "rabbitmq", "[Match]\nWriter=rabbitmq:*\nAction=stop\n")
    load.stop()
    quiesce("checkpoint", broker.name, "--name", "stopped", "--window", "60", timeout=400)
    proof = quiesce("verify", f"{broker.name}@stopped", timeout=TIMEOUT_S)["proof"]
    print(proof)
    states = {each["id"]: each["state"] for each in proof["writers"]}
    assert states["rabbitmq:rabbitmq-server.service"] == "proven"
