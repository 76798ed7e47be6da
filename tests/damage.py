"""Damages what a checkpoint has, on purpose: as a disk, another program or a person might."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GARBAGE = bytes(range(1, 256)) * 257
READY_S = 30.0


@contextmanager
def opened(image: str) -> Iterator[Path]:
    """The disk that a guest would read from this qcow2 image, as a raw file, during the block. What is written to it is in the
    image afterwards. The image is another file then: a VM that has it open reads the old one, and goes on undisturbed."""
    new = Path(f"{image}.new")
    shutil.copy2(image, new)
    owner = Path(image).stat()
    os.chown(new, owner.st_uid, owner.st_gid)
    with tempfile.TemporaryDirectory() as scratch:
        disk = Path(scratch, "disk")
        disk.touch()
        daemon = subprocess.Popen(
            [
                *("qemu-storage-daemon", "--blockdev", f"driver=file,node-name=file,filename={new},locking=off"),
                *("--blockdev", "driver=qcow2,node-name=disk,file=file"),
                *("--export", f"type=fuse,id=export,node-name=disk,mountpoint={disk},writable=on"),
            ]
        )
        try:
            deadline = time.monotonic() + READY_S
            while not disk.stat().st_size:
                assert daemon.poll() is None, "qemu-storage-daemon ended"
                assert time.monotonic() < deadline, "qemu-storage-daemon shows no disk"
                time.sleep(0.02)
            yield disk
        finally:
            daemon.terminate()
            daemon.wait(READY_S)
    new.replace(image)


# -- an ext4 filesystem that is not mounted, without partitions. Paths begin at its top.


def cut_off(disk: Path, path: str, size: int) -> None:
    """Ends the file after so many bytes."""
    _debugfs(disk, f"sif {path} size {size}", write=True)


def lose(disk: Path, path: str) -> None:
    """Removes the file."""
    _debugfs(disk, f"rm {path}", write=True)
    assert "File not found" in _debugfs(disk, f"stat {path}", fails=True)


def spoil(disk: Path, path: str, number: int = 0) -> None:
    """Overwrites a block of the file, or of the directory."""
    size = _block_size(disk)
    _write(disk, int(_debugfs(disk, f"bmap {path} {number}")) * size, GARBAGE[:size])


def spoil_inode(disk: Path, path: str) -> None:
    """Overwrites what the table of inodes has of it, and of nothing else."""
    found = re.search(r"located at block (\d+), offset 0x([0-9a-f]+)", _debugfs(disk, f"imap {path}"))
    assert found
    _write(disk, int(found[1]) * _block_size(disk) + int(found[2], 16), GARBAGE[:128])


def _block_size(disk: Path) -> int:
    found = re.search(r"^Block size:\s+(\d+)$", _debugfs(disk, "show_super_stats -h"), re.MULTILINE)
    assert found
    return int(found[1])


def _write(disk: Path, offset: int, content: bytes) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _debugfs(disk: Path, request: str, *, write: bool = False, fails: bool = False) -> str:
    words = ["debugfs", *(["-w"] if write else []), "-R", request, str(disk)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
    _, _, trouble = done.stderr.partition("\n")  # the first line is the program's version
    assert bool(trouble) is fails, trouble
    return done.stdout + trouble
