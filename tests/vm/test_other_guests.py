"""A guest that is not the lab's own kind: Debian 12 with 512 MB and swap, its cluster on XFS on a volume group over two disks,
another one on btrfs, and AppArmor that confines the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import lab.image
from lab import Machine
from lab.ledger import Ledger
from lab.proof import recovery
from lab.ready import install
from tests.host import Quiesce

DISKS = {"vdc": 400, "vdd": 400, "vde": 600}
SET_UP = """
set -e
systemctl stop postgresql
modprobe -a dm_mod xfs btrfs
pvcreate -q /dev/vdc /dev/vdd; vgcreate -q data /dev/vdc /dev/vdd; lvcreate -q -y --stripes 2 --extents 100%FREE --name pg data
mkfs.xfs -q /dev/data/pg; mkfs.btrfs -q /dev/vde
cp -a /var/lib/postgresql /root/old; umount /var/lib/postgresql; mount /dev/data/pg /var/lib/postgresql
cp -a /root/old/. /var/lib/postgresql/; chown postgres: /var/lib/postgresql
mkdir /srv/btrfs; mount /dev/vde /srv/btrfs; btrfs -q subvolume create /srv/btrfs/clusters; umount /srv/btrfs
mount -o subvol=clusters /dev/vde /srv/btrfs; chown postgres: /srv/btrfs
printf '%s\\n' '/dev/data/pg /var/lib/postgresql xfs defaults 0 0' '/dev/vde /srv/btrfs btrfs subvol=clusters 0 0' >>/etc/fstab
sed -i '/LABEL=data/d' /etc/fstab
mount /dev/vdb /mnt; fallocate -l 200M /mnt/swap; chmod 600 /mnt/swap; mkswap -q /mnt/swap; swapon /mnt/swap
printf 'xfs\\nbtrfs\\ndm_mod\\n' >/etc/modules
"""
PROFILE = """
abi <abi/3.0>,
include <tunables/global>
profile postgres /usr/lib/postgresql/15/bin/postgres {
  include <abstractions/base>
  capability, network, signal, unix, file,
}
"""
SECOND = """
set -e
runuser -u postgres -- /usr/lib/postgresql/15/bin/initdb -D /srv/btrfs/second -A peer >/dev/null
echo "port = 5433" >>/srv/btrfs/second/postgresql.conf
systemd-run -q --unit=second --uid=postgres --property=RuntimeDirectory=postgresql --property=RuntimeDirectoryPreserve=yes \
    /usr/lib/postgresql/15/bin/postgres -D /srv/btrfs/second
"""


def confine(machine: Machine) -> None:
    """The servers that start from now on."""
    machine.write_file("/etc/apparmor.d/postgres", PROFILE.encode())
    machine.run("apparmor_parser -r /etc/apparmor.d/postgres && systemctl restart postgresql")
    machine.wait_for_postgresql()
    assert "postgres (enforce)" in machine.run("cat /proc/$(pgrep -o postgres)/attr/current").stdout


@pytest.fixture
def guest() -> Iterator[Machine]:
    image = lab.image.old()
    with Machine(image, more_disks=DISKS, memory_mib=512) as machine:
        machine.wait_for_postgresql()
        install(machine)
        machine.run(SET_UP, timeout=120)
        confine(machine)
        machine.run(SECOND)
        yield machine


@pytest.mark.timeout(900)
def test_a_guest_of_another_kind(guest: Machine, quiesce: Quiesce) -> None:
    """Broken: what holds in the lab's own guest would not hold in an administrator's."""
    ledger = Ledger(guest, clients=1)
    ledger.start()
    node = quiesce("checkpoint", guest.name, "--name", "busy", timeout=200)
    writers = {writer["id"]: writer for writer in node["writers"]}
    assert (node["consistency"], len(writers)) == ("application", 2), writers
    first = writers["postgresql:15/main"]
    assert {writer["grade"] for writer in writers.values()} == {"stands-still"}
    kinds = {item["mountpoint"]: item["fstype"] for item in node["filesystems"] if item["state"] == "thawed"}
    assert (kinds["/var/lib/postgresql"], kinds["/srv/btrfs"]) == ("xfs", "btrfs")

    # Of a volume group over two disks one alone is worth nothing: the cluster in it is lost.
    part = quiesce("checkpoint", guest.name, "--exclude", "vdd", "--require", "filesystem", timeout=200)
    grades = {writer["id"]: writer["grade"] for writer in part["writers"]}
    assert grades == {"postgresql:15/main": "crash", "postgresql:/srv/btrfs/second": "stands-still"}
    ledger.stop()
    assert ledger.errors() == ""

    # No memory is left but what is swapped out. Whatever comes of it, the servers work afterwards.
    guest.run("systemd-run -q --unit=hog sh -c 'exec tail -c 400M /dev/zero'; sleep 5")
    quiesce.run("checkpoint", guest.name, "--name", "tight", timeout=200)
    guest.run("systemctl stop hog; true")
    assert guest.sql("SELECT 1") == "1"

    entries, held = ledger.acknowledged(), node["guest_clock_ns"]["held"]
    quiesce("restore", f"{guest.name}@busy", "--start", "--discard-current", timeout=200)
    guest.wait_for_guest()
    guest.wait_for_postgresql()
    assert recovery(guest).redo_starts == first["position"]["redo_lsn"]
    assert {entry.key for entry in entries if entry.acknowledged_ns < held} <= ledger.stored()
