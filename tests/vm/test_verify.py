"""`quiesce verify` on real guests: what a checkpoint claims, and what a copy of it does when it is booted aside."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab import Machine
from lab.ledger import Ledger
from lab.standstill import wait_for
from tests import damage
from tests.host import Quiesce

pytestmark = pytest.mark.timeout(900)
CLUSTER = "postgresql:17/main"
LIAR = "external:liar"
TIMEOUT_S = 800


def proof_of(proof: dict[str, Any], id: str) -> dict[str, Any]:
    return next(each for each in proof["writers"] if each["id"] == id)


def fingerprints(machine: Machine) -> dict[str, tuple[str, int]]:
    """Of the files of the VM's and the checkpoints' directory that nobody may change: hash, and time of the last write."""
    live = subprocess.run(
        ["virsh", "-q", "-c", "qemu:///system", "domblklist", machine.name], check=True, capture_output=True, text=True
    ).stdout
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(machine.directory.glob("*.qcow2"))
        if str(path) not in live
    }


def domains() -> str:
    return subprocess.run(
        ["virsh", "-q", "-c", "qemu:///system", "list", "--all", "--name"], check=True, capture_output=True, text=True
    ).stdout


def test_three_kinds_of_truth(machine: Machine, quiesce: Quiesce) -> None:
    """Broken: nobody would learn that a checkpoint is not what it claims to be, or a true claim would be called a lie.

    Under load, one checkpoint that stands still and one without the agent. The first replays what it claims and not a byte
    more, the second recovers. Neither the VM nor a file of the checkpoints notices."""
    machine.run("mkdir -p /etc/quiesce/verify.d; printf '#!/bin/sh\\necho ledger is there; test -e /run/quiesce/trial\\n'"
                " >/etc/quiesce/verify.d/ledger; chmod 755 /etc/quiesce/verify.d/ledger")  # fmt: skip
    ledger = Ledger(machine)
    ledger.start()
    quiesce("checkpoint", machine.name, "--name", "held", timeout=200)
    machine.run("systemctl stop quiesce-agent")
    quiesce("checkpoint", machine.name, "--name", "torn", "--require", "crash", timeout=200)
    machine.run("systemctl start quiesce-agent")
    before = fingerprints(machine)
    assert before

    held = quiesce("verify", f"{machine.name}@held", timeout=TIMEOUT_S)
    found = proof_of(held["proof"], CLUSTER)
    print(held)
    assert (held["proof"]["state"], held["differs"], held["recorded"]) == ("proven", False, True)
    assert (found["state"], found["claimed"]) == ("proven", "stands-still")
    assert found["redo_bytes"] > 0
    assert any("pg_amcheck" in check for check in found["checks"])
    assert proof_of(held["proof"], "check:ledger")["evidence"] == ["ledger is there"]
    assert held["proof"]["boot_ms"] > 0

    torn = quiesce("verify", f"{machine.name}@torn", timeout=TIMEOUT_S)
    print(torn)
    assert (torn["proof"]["state"], torn["differs"]) == ("recovered", False)
    assert fingerprints(machine) == before
    assert quiesce("show", f"{machine.name}@held")["proof"] == held["proof"]
    assert domains().split() == [machine.name]
    assert not list(Path(machine.directory).glob("quiesce-trial-*"))
    ledger.stop()
    assert ledger.errors() == ""


def taken(quiesce: Quiesce, machine: Machine, name: str) -> dict[str, Any]:
    """Tries again where a busy host keeps the emulated guest from answering in time: what is tested here is the copy."""
    for _ in range(4):
        done = quiesce.run("checkpoint", machine.name, "--name", name, "--window", "30", "--json", timeout=200)
        if done.returncode == 0:
            return done.json
    raise AssertionError(done)


LIAR_UNIT = b"""
[Unit]
After=quiesce-agent.service
[Service]
Environment=PYTHONPATH=/usr/local/lib/quiesce/quiesce-agent.pyz
ExecStart=/usr/bin/python3 -m quiesce.testing.writer --data /srv/liar/counter --name liar --lie hold --grade clean
[Install]
WantedBy=multi-user.target
"""


def test_damage_and_lies_are_named(machine: Machine, quiesce: Quiesce) -> None:
    """Broken: a checkpoint whose table is corrupt, or whose writer lied, would be called proven.

    A page of a table is overwritten before the checkpoint, so that the checkpoint claims the best of it."""
    machine.sql("CREATE TABLE stock AS SELECT generate_series(1, 20000) AS id; CHECKPOINT")
    page = machine.sql("SELECT pg_relation_filepath('stock')")
    machine.run(f"""
        set -e
        pg_ctlcluster 17 main stop
        dd if=/dev/urandom of=/var/lib/postgresql/17/main/{page} bs=8192 seek=3 count=1 conv=notrunc status=none
        pg_ctlcluster 17 main start
    """, timeout=120)  # fmt: skip
    machine.wait_for_postgresql()
    machine.write_file("/etc/systemd/system/liar.service", LIAR_UNIT)
    machine.run("mkdir -p /srv/liar && systemctl daemon-reload && systemctl enable --now liar", timeout=120)
    wait_for(lambda: any(each["id"] == LIAR for each in quiesce("writers", machine.name)["writers"]), 60, every_s=1)
    flipped = taken(quiesce, machine, "flipped")
    assert flipped["consistency"] == "application"

    error = quiesce("verify", f"{machine.name}@flipped", expect=12, timeout=TIMEOUT_S)["error"]
    print(error)
    proof = error["details"]["proof"]
    assert proof["state"] == "failed"
    damaged, lied = proof_of(proof, CLUSTER), proof_of(proof, LIAR)
    assert (damaged["state"], damaged["differs"]) == ("failed", True)
    assert "stock" in damaged["text"]
    assert (lied["state"], lied["claimed"], lied["differs"]) == ("recovered", "clean", True)
    assert "sequence was" in lied["text"]
    assert quiesce("show", f"{machine.name}@flipped")["proof"] == proof


LOADED = """
set -e
rm /usr/lib/postgresql/17/bin/pg_amcheck
systemctl enable -q --now mariadb
mariadb -e 'CREATE DATABASE shop; CREATE TABLE shop.kept (k INT PRIMARY KEY); CREATE TABLE shop.lost (k INT PRIMARY KEY);
    INSERT INTO shop.kept VALUES (1); INSERT INTO shop.lost VALUES (1)'
mkdir -p /srv/good /srv/bad
touch $(seq -f /srv/good/%g 200) $(seq -f /srv/bad/%g 20)
sync
"""
"""pg_amcheck takes an emulated guest half a minute; the test above has it."""


def test_each_damage_in_the_images_is_named(bare_server: Machine, quiesce: Quiesce) -> None:
    """Broken: a checkpoint whose log was cut off in its image would be shown as an ordinary recovery, with commits lost; one
    that lacks a file of InnoDB, or whose inodes or directories are damaged, would be called proven.

    All are in one checkpoint, and hide none of the others."""
    machine = bare_server
    machine.run(LOADED, timeout=200)
    machine.sql("CREATE TABLE noise (text text)")
    rows = "INSERT INTO noise SELECT repeat('x', 1500) FROM generate_series(1, 20);"  # several pages of the log a commit
    noise = f'while sleep 0.02; do echo "{rows}"; done | psql -X -q\n'.encode()
    machine.write_file("/run/noise", noise)
    machine.spawn("exec setsid runuser -u postgres -- sh /run/noise")
    wait_for(lambda: int(machine.sql("SELECT count(*) FROM noise")) > 100, 60, every_s=1)
    cut = taken(quiesce, machine, "cut")
    assert cut["consistency"] == "application"
    position = next(each["position"] for each in cut["writers"] if each["id"] == CLUSTER)
    images = {disk["target"]: disk["path"] for disk in cut["disks"]}
    with damage.opened(images["vdb"]) as disk:
        cut_off_the_log(disk, position)
    with damage.opened(images["vda"]) as disk:
        damage.lose(disk, "/var/lib/mysql/shop/lost.ibd")
        damage.spoil_inode(disk, "/srv/good/7")
        damage.spoil(disk, "/srv/bad")
    error = quiesce("verify", f"{machine.name}@cut", expect=12, timeout=TIMEOUT_S)["error"]
    print(error)
    found = {each["id"]: each for each in error["details"]["proof"]["writers"]}
    assert {found[id]["state"] for id in (CLUSTER, "mariadb:main", "filesystems")} == {"failed"}
    assert "of its log, which it had at the checkpoint" in found[CLUSTER]["text"]
    assert "CHECK TABLE shop.lost: " in found["mariadb:main"]["text"]
    assert "Could not find a valid tablespace file for shop/lost" in found["mariadb:main"]["text"]
    assert "/srv/good/7: " in found["filesystems"]["text"]
    assert "/srv/bad: " in found["filesystems"]["text"]
    assert "EXT4-fs error (device vda)" in found["filesystems"]["text"]
    assert not error["details"]["recorded"]  # a proof belongs to the bytes that were checkpointed
    assert domains().split() == [machine.name]
    assert not list(Path(machine.directory).glob("quiesce-trial-*"))


def cut_off_the_log(disk: Path, position: dict[str, str]) -> None:
    """Ends the segment of PostgreSQL's log after the page with the record of the last checkpoint, without which no start is
    possible, in the middle of what the next start would replay."""
    begin, end = (int(position[key].partition("/")[2], 16) for key in ("checkpoint_lsn", "insert_lsn"))
    assert begin >> 24 == end >> 24, "in one segment of 16 MiB"
    size = ((begin & 0xFFFFFF) // 8192 + 1) * 8192
    assert size < end & 0xFFFFFF, "the log goes on after the page with the last checkpoint"
    damage.cut_off(disk, f"/17/main/pg_wal/{int(position['timeline']):08X}00000000{begin >> 24:08X}", size)
