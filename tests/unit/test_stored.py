"""agent/stored.py, on a /sys of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.agent import stored
from quiesce.agent.mountinfo import Mount
from quiesce.agent.stored import guest_disk, stored_on
from quiesce.model.reports import GuestDisk


class Sysfs:
    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("dev/block", "class/block", "devices"):
            (root / name).mkdir(parents=True)

    def add(self, name: str, number: str, size: int = 8, slaves: tuple[str, ...] = (), part_of: str = "", **files: str) -> Path:
        path = self.root / "devices" / (f"{part_of}/{name}" if part_of else name)
        path.mkdir()
        (path / "dev").write_text(number + "\n")
        (path / "size").write_text(f"{size}\n")
        if part_of:
            (path / "partition").write_text("1\n")
        (path / "slaves").mkdir()
        for slave in slaves:
            (path / "slaves" / slave).symlink_to((self.root / "class" / "block" / slave).resolve())
        for file, content in files.items():
            target = path / file.replace("__", "/")
            target.parent.mkdir(exist_ok=True)
            target.write_text(content)
        (self.root / "dev" / "block" / number).symlink_to(path)
        (self.root / "class" / "block" / name).symlink_to(path)
        return path


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


def names(mount: Mount, sysfs: Sysfs, *others: Mount) -> list[str] | None:
    found = stored_on(mount, {each.device: each for each in (mount, *others)}, str(sysfs.root))
    return None if found is None else [disk.name for disk in found]


def on(device: tuple[int, int], fstype: str = "ext4", source: str = "/dev/x") -> Mount:
    return Mount(1, device, f"/{device}", fstype, source, super_read_only=False)


def test_partitions_volumes_and_raids_lie_on_their_disks(sysfs):
    """Broken: a volume group over a disk that is left out would count as whole."""
    for index, name in enumerate("abc"):
        sysfs.add(f"vd{name}", f"254:{16 * index}")
    sysfs.add("vda1", "254:1", part_of="vda")
    sysfs.add("md0", "9:0", slaves=("vda1", "vdb"))
    sysfs.add("dm-0", "253:0", slaves=("md0", "vdc"))
    assert names(on((254, 0)), sysfs) == ["vda"]
    assert names(on((254, 1)), sysfs) == ["vda"]
    assert names(on((9, 0)), sysfs) == ["vda", "vdb"]
    assert names(on((253, 0)), sysfs) == ["vda", "vdb", "vdc"]


def test_btrfs_lies_on_all_its_devices(sysfs):
    """Broken: its second disk, which mountinfo does not name, could be left out unseen."""
    for number, name in enumerate(("vda", "vdb", "vdc")):
        sysfs.add(name, f"254:{16 * number}")
    devices = sysfs.root / "fs" / "btrfs" / "uuid" / "devices"
    devices.mkdir(parents=True)
    (devices / "vda").mkdir()
    (devices / "vdc").mkdir()
    assert names(on((0, 40), "btrfs", "/dev/vda"), sysfs) == ["vda", "vdc"]


def test_a_filesystem_in_a_file_lies_on_the_disks_of_that_files_filesystem(sysfs, monkeypatch):
    """Broken: a loop device would be a disk that libvirt does not list."""
    sysfs.add("vda", "254:0")
    sysfs.add("loop0", "7:0")
    below = on((254, 0))
    monkeypatch.setattr(stored, "carrying_filesystems", lambda device, _: frozenset({below.device} if device == (7, 0) else ()))
    assert names(on((7, 0)), sysfs, below) == ["vda"]


@pytest.mark.parametrize("mount", [on((0, 50), "zfs", "tank"), on((0, 51), "nfs4", "server:/"), on((99, 9))])
def test_what_is_not_known_is_not_guessed(mount, sysfs):
    """Broken: it would count as left out, or as whole by accident."""
    assert names(mount, sysfs) is None


@pytest.mark.parametrize(
    ("files", "serial"),
    [
        ({"serial": "VIRTIO-1\n"}, "VIRTIO-1"),
        ({"device__serial": "NVME 1   \n"}, "NVME 1"),
        ({"device__vpd_pg80": "\0\x80\0\x07SCSI-01"}, "SCSI-01"),
        ({}, ""),
    ],
)
def test_size_and_serial_of_each_bus(files, serial, sysfs):
    """Broken: disks of one size could not be told apart."""
    sysfs.add("disk0", "8:0", size=2097152, **files)
    assert guest_disk("disk0", str(sysfs.root)) == GuestDisk("disk0", 1 << 30, serial)
