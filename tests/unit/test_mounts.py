"""agent/mounts.py"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.agent import mounts
from quiesce.agent.mountinfo import Mount, on_the_network, parse_mountinfo
from quiesce.agent.mounts import Found, carrying_filesystems, classify, freeze_order

MOUNTINFO = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro
23 22 0:20 / /proc rw,nosuid - proc proc rw
24 22 0:21 / /sys rw master:2 propagate_from:3 - sysfs sysfs rw
25 22 254:16 / /srv/with\040space\011tab\134backslash\012newline ro,noatime - xfs /dev/vdb rw,attr2
26 22 254:0 /var/bind /mnt/bind ro - ext4 /dev/vda rw
27 22 254:32 / /ro rw shared:9 - ext4 /dev/vdc ro,norecovery
"""


def mount(
    number: int, device: tuple[int, int], where: str, fstype: str = "ext4", source: str = "/dev/x", ro: bool = False
) -> Mount:
    return Mount(number, device, where, fstype, source, ro)


def test_mountinfo_is_read_with_its_escapes_and_optional_fields():
    """Broken: a filesystem would be opened at the wrong path, so not frozen, or missed altogether."""
    mounts = parse_mountinfo(MOUNTINFO)
    assert [item.id for item in mounts] == [22, 23, 24, 25, 26, 27]
    assert mounts[0] == Mount(22, (254, 0), "/", "ext4", "/dev/vda", super_read_only=False)
    assert mounts[2].fstype == "sysfs"
    assert mounts[3].mountpoint == "/srv/with space\ttab\\backslash\nnewline"
    # Read-only is what the superblock is, not what one mount of it is.
    assert [item.super_read_only for item in mounts] == [False, False, False, False, False, True]


@given(st.lists(st.text(st.characters(codec="ascii", exclude_categories=("C",)), min_size=1).map(lambda name: "/" + name)))
def test_any_mountpoint_is_read_back(names):
    """Broken: a mountpoint with unusual characters would be missed or mistaken."""
    escaped = [name.replace("\\", r"\134").replace(" ", r"\040") for name in names]
    text = "".join(f"{number} 1 8:{number} / {name} rw - ext4 /dev/sda rw\n" for number, name in enumerate(escaped))
    assert [item.mountpoint for item in parse_mountinfo(text)] == names


@pytest.mark.parametrize("character", ["\x0c", "\x0b", "\x1c", "\x85", "\u2028", "\r"])
def test_only_a_newline_ends_a_line(character):
    """Broken: a filesystem mounted at such a path would be missed, and its files not held still."""
    text = f"36 22 8:1 / /mnt/a{character}b rw - ext4 /dev/sda1 rw\n"
    assert [item.mountpoint for item in parse_mountinfo(text)] == [f"/mnt/a{character}b"]


def test_an_own_mountinfo_can_be_read():
    """Broken: the format of a real kernel would not be understood."""
    text = Path("/proc/self/mountinfo").read_text()
    assert len(parse_mountinfo(text)) == len(text.splitlines())


def test_lines_that_are_none_are_passed_over():
    """Broken: one odd line would keep the guest from every checkpoint."""
    assert parse_mountinfo("\nnonsense\n1 2 3:4 / /\n1 2 3:4 / / rw - ext4\n") == []


def test_a_container_is_reached_through_its_process():
    """Broken: a container's filesystem would be looked for at its path in the host's namespace."""
    (inner, outer) = (parse_mountinfo(MOUNTINFO, root)[3] for root in ("/proc/7/root", "/"))
    assert inner.path == "/proc/7/root" + outer.path
    assert parse_mountinfo(MOUNTINFO, "/proc/7/root")[0].path == "/proc/7/root/"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (mount(1, (254, 0), "/"), "freeze"),
        (mount(1, (7, 0), "/loop", source="/dev/loop0"), "freeze"),
        (mount(1, (254, 1), "/boot/efi", "vfat"), "freeze"),  # tried, and flushed when the kernel says it has none
        (mount(1, (0, 40), "/data", "btrfs", "/dev/vdb"), "freeze"),
        (mount(1, (0, 40), "/data", "bcachefs", "/dev/vdb:/dev/vdc"), "freeze"),
        (mount(1, (0, 41), "/tank", "zfs", "tank/data"), "freeze"),
        (mount(1, (254, 2), "/usb", "fuseblk", "/dev/sdc1"), "freeze"),
        (mount(1, (254, 3), "/cd", "iso9660", ro=True), "skip"),
        (mount(1, (0, 40), "/data", "btrfs", "/dev/vdb", ro=True), "skip"),
        (mount(1, (0, 41), "/tank", "zfs", "tank/data", ro=True), "skip"),
        (mount(1, (0, 50), "/home", "nfs4", "server:/home"), "skip"),
        (mount(1, (0, 51), "/share", "cifs", "//server/share"), "skip"),
        (mount(1, (0, 52), "/host", "virtiofs", "tag"), "skip"),
        (mount(1, (254, 9), "/cluster", "ocfs2", "/dev/vdz"), "skip"),
        (mount(1, (0, 53), "/merged", "overlay", "overlay"), "skip"),
        (mount(1, (0, 54), "/ssh", "fuse.sshfs", "host:"), "skip"),
        (mount(1, (0, 5), "/dev", "devtmpfs", "udev"), "nothing"),
        (mount(1, (0, 6), "/tmp", "tmpfs", "tmpfs"), "nothing"),
        (mount(1, (0, 7), "/proc", "proc", "proc"), "nothing"),
        (mount(1, (0, 8), "/sys/fs/cgroup", "cgroup2", "cgroup2"), "nothing"),
        (mount(1, (0, 9), "/run/portal", "fuse", "portal"), "nothing"),
    ],
    ids=lambda value: value.fstype if isinstance(value, Mount) else value,
)  # fmt: skip
def test_each_kind_of_filesystem(item, expected):
    """Broken: this kind would be left unfrozen under an application-consistent label, or would fail every freeze."""
    found = classify([item])
    assert [("skip" if entry.skip else "freeze") for entry in found] == ([] if expected == "nothing" else [expected])


def test_a_superblock_is_frozen_once_however_often_it_is_mounted():
    """Broken: the second freeze of the same superblock fails with EBUSY, as if somebody else had frozen it."""
    mounts = [
        mount(1, (254, 0), "/"),
        mount(2, (254, 0), "/var/bind"),
        mount(3, (254, 16), "/srv"),
        mount(4, (254, 0), "/srv/nested/bind"),
        mount(5, (0, 40), "/data", "btrfs", "/dev/vdb"),
        mount(6, (0, 40), "/data/sub", "btrfs", "/dev/vdb"),
    ]
    found = classify(mounts)
    assert [[item.id for item in entry.mounts] for entry in found] == [[1, 2, 4], [3], [5, 6]]
    assert found[0].mount.mountpoint == "/"


ROOT = Found((mount(1, (254, 0), "/"),))
SRV = Found((mount(2, (254, 16), "/srv"),))
INNER = Found((mount(3, (254, 32), "/srv/inner"),))


def _loop(minor: int, where: str) -> Found:
    return Found((mount(100 + minor, (7, minor), where),))


def test_nested_mounts_come_first_and_the_root_last():
    """Broken: freezing / early stops the very programs that are to freeze the rest."""
    assert freeze_order([ROOT, SRV, INNER], {}) == [INNER, SRV, ROOT]
    assert freeze_order([SRV, ROOT, INNER], {}) == [INNER, SRV, ROOT]


def test_a_filesystem_in_a_file_comes_before_the_one_with_the_file():
    """Broken: its freeze writes into a filesystem that is frozen already, and hangs until the dead-man thaws."""
    loop = _loop(0, "/mnt")
    assert freeze_order([loop, ROOT, SRV], {(7, 0): frozenset({(254, 16)})}) == [loop, SRV, ROOT]


def test_loops_in_loops_come_innermost_first():
    """Broken: as above, one storey up."""
    first, second, third = _loop(0, "/a"), _loop(1, "/b"), _loop(2, "/c")
    carriers = {
        (7, 0): frozenset({(254, 16)}),
        (7, 1): frozenset({(7, 0)}),
        (7, 2): frozenset({(7, 1), (254, 0)}),
    }
    assert freeze_order([third, first, ROOT, second, SRV], carriers) == [third, second, first, SRV, ROOT]


@given(st.data())
def test_every_carried_filesystem_comes_before_its_carrier(data):
    """Broken: some stack of filesystems in files of others would deadlock at its freeze."""
    count = data.draw(st.integers(1, 8))
    found = [ROOT, *(_loop(number, f"/m{number}") for number in range(1, count + 1))]
    devices = [item.mount.device for item in found]
    # Each may be carried by any that precede it in this list, which is shuffled into another mount order afterwards.
    carriers = {
        device: frozenset(data.draw(st.sets(st.sampled_from(devices[:index]), max_size=3)))
        for index, device in enumerate(devices)
        if index
    }
    order = freeze_order(data.draw(st.permutations(found)), carriers)
    assert sorted(item.mount.device for item in order) == sorted(devices)
    position = {item.mount.device: index for index, item in enumerate(order)}
    for device, below in carriers.items():
        assert all(position[device] < position[carrier] for carrier in below)
    assert order[-1] is ROOT


def test_devices_that_carry_each_other_do_not_hang_it():
    """Broken: a strange sysfs would hang the agent."""
    carriers = {(7, 0): frozenset({(7, 1)}), (7, 1): frozenset({(7, 0)})}
    assert len(freeze_order([_loop(0, "/a"), _loop(1, "/b")], carriers)) == 2


class Sysfs:
    """As much of /sys as tells what a block device lies on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev" / "block").mkdir(parents=True)
        (root / "devices").mkdir()

    def add(self, name: str, device: str, *, backing: str | None = None, slaves: tuple[str, ...] = ()) -> Path:
        path = self.root / "devices" / name
        path.mkdir(parents=True)
        (path / "dev").write_text(device + "\n")
        (self.root / "dev" / "block" / device).symlink_to(path)
        if backing is not None:
            (path / "loop").mkdir()
            (path / "loop" / "backing_file").write_text(backing + "\n")
        if slaves:
            (path / "slaves").mkdir()
            for slave in slaves:
                (path / "slaves" / slave).symlink_to(self.root / "devices" / slave)
        return path


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


@pytest.fixture
def here(tmp_path: Path) -> tuple[int, int]:
    number = tmp_path.stat().st_dev
    return os.major(number), os.minor(number)


def test_a_plain_disk_is_carried_by_nothing(sysfs):
    """Broken: disks would be ordered by what they do not lie on."""
    sysfs.add("vda", "254:0")
    assert carrying_filesystems((254, 0), str(sysfs.root)) == frozenset()
    assert carrying_filesystems((99, 99), str(sysfs.root)) == frozenset()


def test_a_loop_device_is_carried_by_the_filesystem_of_its_file(sysfs, here, tmp_path):
    """Broken: the carrier would be frozen first."""
    (tmp_path / "image").touch()
    sysfs.add("loop0", "7:0", backing=str(tmp_path / "image"))
    assert carrying_filesystems((7, 0), str(sysfs.root)) == {here}


def test_a_deleted_backing_file_is_no_error(sysfs, tmp_path):
    """Broken: one forgotten loop device would keep the guest from every checkpoint."""
    sysfs.add("loop0", "7:0", backing=f"{tmp_path}/image (deleted)")
    assert carrying_filesystems((7, 0), str(sysfs.root)) == frozenset()


def test_a_backing_file_whose_name_is_no_text_is_no_error(sysfs, here, tmp_path):
    """Broken: one oddly named file would keep the guest from every checkpoint."""
    path = sysfs.add("loop0", "7:0", backing="")
    name = os.fsencode(tmp_path) + b"/\xff.img"
    (path / "loop" / "backing_file").write_bytes(name + b"\n")
    assert carrying_filesystems((7, 0), str(sysfs.root)) == frozenset()
    os.close(os.open(name, os.O_CREAT))
    assert carrying_filesystems((7, 0), str(sysfs.root)) == {here}


def test_partitions_and_mapped_devices_are_followed_down_to_the_loop(sysfs, here, tmp_path):
    """Broken: LVM or RAID on loop devices would be frozen in the wrong order."""
    (tmp_path / "image").touch()
    sysfs.add("loop0", "7:0", backing=str(tmp_path / "image"))
    partition = sysfs.add("loop0/loop0p1", "259:0")
    (partition / "partition").write_text("1\n")
    (sysfs.root / "devices" / "loop0p1").symlink_to(partition)
    sysfs.add("vdb", "254:16")
    sysfs.add("md0", "9:0", slaves=("loop0p1", "vdb"))
    sysfs.add("dm-0", "253:0", slaves=("md0",))
    for device in ((259, 0), (9, 0), (253, 0)):
        assert carrying_filesystems(device, str(sysfs.root)) == {here}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pci0000:00/virtio1/block/vda", False),
        ("pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block/sda", False),
        ("pci0000:00/nvme/nvme0/nvme0n1", False),
        ("platform/host2/session1/target2:0:0/2:0:0:0/block/sdb", True),
        ("virtual/nvme-fabrics/ctl/nvme1/nvme1n1", True),
        ("rbd/0/block/rbd0", True),
        ("virtual/block/nbd0", True),
        ("virtual/block/drbd0", True),
    ],
)
def test_disks_that_come_over_the_network_are_told_apart(name, expected, sysfs):
    """Broken: files on another machine's disk would be promised in this one's checkpoint, or a local disk left out."""
    path = sysfs.add(name, "8:16")
    partition = sysfs.add(f"{name}/part1", "8:17")
    (sysfs.root / "devices" / "part1").symlink_to(partition)
    sysfs.add("virtual/block/dm-0", "253:0", slaves=("part1",))
    assert path.exists()
    for device in ((8, 16), (8, 17), (253, 0)):
        assert on_the_network(device, str(sysfs.root)) == expected


def test_one_networked_disk_below_is_enough_and_an_unknown_device_has_none(sysfs):
    """Broken: a volume half of which is elsewhere would be promised in this machine's checkpoint."""
    sysfs.add("vda", "254:0")
    sysfs.add("virtual/block/nbd3", "43:3")
    (sysfs.root / "devices" / "nbd3").symlink_to(sysfs.root / "devices" / "virtual/block/nbd3")
    sysfs.add("dm-0", "253:0", slaves=("vda",))
    sysfs.add("dm-1", "253:1", slaves=("dm-0", "nbd3"))
    sysfs.add("dm-2", "253:2", slaves=("dm-1",))
    found = [on_the_network(device, str(sysfs.root)) for device in ((253, 0), (253, 1), (253, 2), (99, 99), (0, 40))]
    assert found == [False, True, True, False, False]


# -- the freezer, on mounts that are really there


def test_a_slave_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    """A device that vanishes while we look would break every preparation."""
    sysfs = Sysfs(tmp_path / "sys")
    (sysfs.add("dm-0", "253:0") / "slaves" / "gone").mkdir(parents=True)
    assert not on_the_network((253, 0), str(sysfs.root))


def test_a_file_system_in_a_file_of_one_elsewhere_is_elsewhere() -> None:
    """What lies in a file on NFS would be called part of the checkpoint."""
    text = (
        "30 1 0:40 / /srv rw - nfs4 host:/srv rw\n"
        "31 1 7:0 / /loop rw - ext4 /dev/loop0 rw\n"
        "32 1 7:1 / /inner rw - ext4 /dev/loop1 rw\n"
        "33 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    )
    carriers = {(7, 0): frozenset({(0, 40)}), (7, 1): frozenset({(7, 0)})}
    found = mounts.skip_carried_elsewhere(classify(parse_mountinfo(text)), carriers)
    assert {item.mount.mountpoint for item in found if not item.skip} == {"/"}
