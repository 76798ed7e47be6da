"""A small ext4 filesystem of its own on a loop device, which a test may freeze without harm to the machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.agent import linux


@contextlib.contextmanager
def mounted(directory: Path) -> Iterator[Path]:
    """The mount point. Skips the test on a machine without loop devices, or for a user who is not root."""
    image, mountpoint = directory / "image", directory / "mounted"
    mountpoint.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", image], capture_output=True, check=False)
    if (
        made.returncode
        or subprocess.run(["mount", "-o", "loop", image, mountpoint], capture_output=True, check=False).returncode
    ):
        pytest.skip("no filesystem can be mounted here")
    try:
        yield mountpoint
    finally:
        with contextlib.suppress(OSError):
            ask(mountpoint, linux.FITHAW)
        subprocess.run(["umount", "--lazy", mountpoint], check=True)


def ask(mountpoint: Path, request: int) -> None:
    """FIFREEZE or FITHAW. Raises OSError."""
    descriptor = os.open(mountpoint, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, request, 0)
    finally:
        os.close(descriptor)
