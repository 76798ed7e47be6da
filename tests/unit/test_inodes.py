"""agent/inodes.py: that the kernel meets damaged inodes and directories, and what stands in the way of reading all."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.agent import inodes, mountinfo, verification
from quiesce.agent.inodes import InodesRead, read_inodes
from quiesce.agent.mountinfo import Mount
from quiesce.agent.mounts import ELSEWHERE, READ_ONLY, Found
from tests.damage import spoil, spoil_inode
from tests.unit.hung_filesystem import hung

WHOLE = 123
"""Inodes of the image besides its topmost directory."""
ODD = b"new\nline \xff\xfe\xe2\x80\xae"


def at(path: Path, fstype: str = "ext4", skip: str | None = None) -> Found:
    """As if the directory were a mount point."""
    descriptor = os.open(path, os.O_PATH)
    number = mountinfo.mount_of(descriptor)
    os.close(descriptor)
    device = os.stat(path).st_dev  # noqa: PTH116 - not for pathlib's sake
    where = (os.major(device), os.minor(device))
    return Found((Mount(number, where, str(path), fstype, "/dev/vdz", super_read_only=False),), skip)


def read(*found: Found, seconds: float = 30) -> InodesRead:
    return read_inodes(time.monotonic_ns() + int(seconds * 1e9), found)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Ten inodes below it."""
    top = tmp_path / "top"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/b/file").write_text("x")
    (top / "a/loop").symlink_to("..")
    (top / "a/dead").symlink_to("/no/such/file")
    os.mkfifo(top / "a/fifo")
    os.mkdir(os.fsencode(top) + b"/" + ODD)  # noqa: PTH102 - no name for pathlib
    os.mkdir(os.fsencode(top) + b"/" + ODD + b"/" + ODD)  # noqa: PTH102
    Path(os.fsdecode(os.fsencode(top) + b"/" + ODD + b"/" + ODD), "deep").touch()
    return top


def test_every_inode_is_read(tree: Path) -> None:
    """Broken: a damage deep down, or below an odd name, would not be met; a link would lead out, or a pipe be waited for."""
    before = (tree / "a").stat()
    assert read(at(tree)) == InodesRead(10, 1, (), ())
    assert (tree / "a").stat().st_atime_ns == before.st_atime_ns


def test_filesystems_that_are_not_in_the_image_are_left_out(tree: Path) -> None:
    """Broken: what is on the network would be read; or a filesystem that the kernel made read-only because of its damage would
    not."""
    assert read(at(tree, skip=ELSEWHERE), at(tree, "fuseblk")).inodes == 0
    assert read(at(tree, skip=READ_ONLY)).inodes == 10


def test_a_filesystem_that_is_mounted_twice_is_read_once(tree: Path) -> None:
    """Broken: the time would be spent on the same inodes again, as with each service that has mounts of its own."""
    (mount,) = at(tree).mounts
    assert read(Found((mount, mount))).inodes == 10


def test_what_others_mounted_is_not_touched(tree: Path) -> None:
    """Broken: a user could have the search wait for ever, or lead it into /proc."""
    with hung(tree / "a"):
        assert read(at(tree), seconds=5) == InodesRead(10, 1, (), ())


def test_a_filesystem_that_is_mounted_meanwhile_is_not_waited_for(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a user who mounts at the right moment would keep the host from hearing of all applications."""
    monkeypatch.setattr(inodes, "_names_of_mounts", lambda _: frozenset())
    with hung(tree / "a"):
        found = read(at(tree), seconds=1)
    assert found == InodesRead(0, 0, (), ("the inodes were not read: a filesystem does not answer",))


def test_the_time_is_kept(tree: Path) -> None:
    """Broken: a filesystem with a hundred million files would be a failure, or keep the agent from answering."""
    found = read(at(tree), seconds=0)
    assert (found.inodes, found.damaged) == (0, ())
    late = inodes._read_all(time.monotonic_ns(), [at(tree), at(tree)], frozenset())
    assert late.unread == ("the time was over after 0 inodes; the others were not read",)


@pytest.mark.parametrize(("name", "limit", "said"), [("MAX_INODES", 3, "after 3 inodes"), ("MAX_DEPTH", 2, "in each other")])
def test_there_is_an_end(name: str, limit: int, said: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: what a user of the guest made would take all descriptors, or all memory."""
    monkeypatch.setattr(inodes, name, limit)
    found = read(at(tree))
    assert found.damaged == ()
    assert said in "".join(found.unread)


@pytest.mark.parametrize(
    ("number", "damaged", "unread"),
    [
        (errno.EUCLEAN, "Structure needs cleaning", ""),
        (errno.EBADMSG, "Bad message", ""),
        (errno.EIO, "Input/output error", ""),
        (errno.ENOENT, "", ""),
        (errno.EACCES, "", "Permission denied"),
    ],
)
def test_errors_are_told_apart(number: int, damaged: str, unread: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a file that a service removed meanwhile would be called damaged, or a damaged one be passed over."""
    real = os.fstat

    def fails(descriptor: int) -> os.stat_result:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == tree / "a/b":
            raise OSError(number, "no")
        return real(descriptor)

    monkeypatch.setattr(inodes.os, "fstat", fails)
    found = read(at(tree))
    assert found.damaged == ((f"{tree}/a/b: {damaged}",) if damaged else ())
    assert found.unread == ((f"{tree}/a/b: {unread}",) if unread else ())


def test_a_disk_that_is_gone_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: an answer would name ten million files."""
    for number in range(30):
        (tmp_path / str(number)).mkdir()

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(inodes._Reader, "_look", fails)
    found = read(at(tmp_path))
    assert len(found.damaged) == inodes.MAX_NAMED
    assert "the search ended" in found.unread[0]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Of ext4, with some files."""
    content, image = tmp_path / "content", tmp_path / "image"
    for name, count in (("small", 20), ("large", 100)):
        (content / name).mkdir(parents=True)
        for number in range(count):
            (content / name / f"{name}-{number:0100}").touch()
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", content, image, "16M"], check=True)
    return image


@pytest.fixture
def mounted(image: Path, tmp_path: Path) -> Iterator[Path]:
    """Where a test may mount it."""
    where = tmp_path / "mounted"
    where.mkdir()
    yield where
    subprocess.run(["umount", "--lazy", where], check=False, capture_output=True)


def mount(image: Path, where: Path) -> Found:
    if subprocess.run(["mount", "-o", "loop,ro", image, where], capture_output=True, check=False).returncode:
        pytest.skip("no filesystem can be mounted here")
    return at(where)


def test_a_sound_ext4(image: Path, mounted: Path) -> None:
    """Broken: a good checkpoint would be called damaged."""
    assert read(mount(image, mounted)) == InodesRead(WHOLE, 1, (), ())


def test_a_damaged_inode_is_named(image: Path, mounted: Path) -> None:
    """Broken: a checkpoint whose table of inodes is damaged would be called proven, because nobody opened the file."""
    spoil_inode(image, f"/small/small-{7:0100}")
    found = read(mount(image, mounted))
    assert found.damaged == (f"{mounted}/small/small-{7:0100}: Bad message",)
    assert found.inodes == WHOLE - 1


def test_a_damaged_directory_is_named(image: Path, mounted: Path) -> None:
    """Broken: files would be missing from a checkpoint that is called proven."""
    spoil(image, "/small")
    found = read(mount(image, mounted))
    assert found.damaged == (f"{mounted}/small: Bad message",)
    assert found.inodes == WHOLE - 20


def test_a_directory_with_a_block_that_ext4_passes_over(image: Path, mounted: Path) -> None:
    """Broken: files would be missing, and nobody learn where. If it is the last block, the kernel says so in its log
    alone, by the inode's number."""
    spoil(image, "/large", 2)
    filesystem = mount(image, mounted)
    found = read(filesystem)
    assert found.damaged == ()
    assert WHOLE - 100 < found.inodes < WHOLE
    matches = [match for match in map(verification._INODE.search, verification._kernel_log()) if match]
    name, number = next(match.groups() for match in reversed(matches) if match[1] == inodes._device_name(filesystem.mount))
    wanted = frozenset({(name, int(number)), ("vdz", 11)})
    again = read_inodes(time.monotonic_ns() + 10**10, [filesystem], wanted)
    assert again.named == (f"{mounted}/large is inode #{number}",)
