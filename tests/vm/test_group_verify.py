"""`quiesce group verify` on real guests: copies of two servers that need each other, on a network that nobody else is on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

import lab.ready
from lab import Image, Machine
from lab.network import SERVICE, UNIT, Network, mac_address, network
from lab.standstill import wait_for
from tests.host import Quiesce
from tests.vm.test_verify import domains, proof_of

WEB, DB = 2, 3
IN_THE_COPY = """
set -e
rm /usr/lib/postgresql/17/bin/pg_amcheck
printf "listen_addresses = '*'\\n" >>/etc/postgresql/17/main/postgresql.conf
printf 'host all postgres 198.18.0.0/15 trust\\n' >>/etc/postgresql/17/main/pg_hba.conf
mkdir -p /etc/systemd/system/sysinit.target.wants
ln -s ../%UNIT% /etc/systemd/system/sysinit.target.wants/
"""
"""It takes effect at the next start. pg_amcheck takes an emulated guest half a minute; test_verify.py has it."""
CHECK = b"""#!/bin/sh
rows=$(psql -XAt -h %DB% -U postgres -d postgres -c 'SELECT count(*) FROM orders') || exit 1
echo "$rows orders in the copy of db"
! python3 -c "import socket; socket.create_connection(('%HOST%', 22), 3)" 2>&1 | grep -q refused || exit 1
ping -c 1 -W 2 %HOST% && exit 1
exit 0
"""
"""The host would refuse a connection to a port where nobody listens, and it would answer a ping."""


@contextmanager
def plugged_in(bridge: str) -> Iterator[set[str]]:
    """Whatever is plugged into the bridge at any time during the block."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            seen.update(port.name for port in Path(f"/sys/class/net/{bridge}/brif").iterdir())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        ended.set()
        looking.join()


def prepare(machine: Machine, net: Network, number: int) -> None:
    """Gives the machine a card from its next start on; its copy is the first to start."""
    machine.domain.attachDeviceFlags(
        f"<interface type='bridge'><mac address='{mac_address(number)}'/><source bridge='{net.bridge}'/>"
        "<model type='virtio'/></interface>",
        libvirt.VIR_DOMAIN_AFFECT_CONFIG,
    )
    machine.write_file(f"/etc/systemd/system/{UNIT}", SERVICE.replace("%ADDRESS%", net.address(number)).encode())
    machine.run(IN_THE_COPY.replace("%UNIT%", UNIT))


@pytest.mark.timeout(900)
def test_copies_of_a_group_see_each_other_and_nobody_else(applications: Image, quiesce: Quiesce) -> None:
    """Broken: the check of a server that needs another one would fail in the copy; or a copy would answer production's clients
    with production's address."""
    ready = lab.ready.ready(applications)
    with network() as net, Machine(applications, start_from=ready) as web, Machine(applications, start_from=ready) as db:
        prepare(web, net, WEB)
        prepare(db, net, DB)
        db.sql("CREATE TABLE orders AS SELECT generate_series(1, 7) AS id")
        check = CHECK.replace(b"%DB%", net.address(DB).encode()).replace(b"%HOST%", net.address(1).encode())
        web.write_file("/etc/quiesce/verify.d/orders", check)
        web.run("chmod 755 /etc/quiesce/verify.d/orders")
        quiesce("group", "create", "shop", f"{web.name}:front", f"{db.name}:back")
        quiesce("group", "checkpoint", "shop", "--name", "then", "--window", "30", timeout=300)
        db.sql("INSERT INTO orders VALUES (8)")  # the copy of web asks the copy, not production
        began = time.monotonic()
        with plugged_in(net.bridge) as seen, net.listening() as heard:
            result = quiesce("group", "verify", "shop@then", timeout=800)
            overheard = heard & {mac_address(WEB), mac_address(DB)}
            net.send_as(mac_address(WEB))
            wait_for(lambda: mac_address(WEB) in heard)  # a frame of theirs would have been heard
        print(f"took {time.monotonic() - began:.0f} s: {result}")
        assert (result["state"], result["differs"], result["together"]) == ("proven", False, True)
        proofs = {each["checkpoint"]["vm"]: each["proof"] for each in result["members"]}
        assert proof_of(proofs[web.name], "check:orders")["evidence"] == ["7 orders in the copy of db"]
        assert seen == set(), "a copy is on production's network"
        assert overheard == set(), "production's network had frames of a copy"
        for machine in (web, db):
            assert quiesce("show", f"{machine.name}@then")["proof"] == proofs[machine.name]
            assert not list(machine.directory.glob("quiesce-trial-*"))
        assert sorted(domains().split()) == sorted([web.name, db.name])
