"""A FUSE filesystem whose program never answers: whoever looks at it waits until it is ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def hung(directory: Path) -> Iterator[Path]:
    """The mount point. Skips the test where FUSE cannot be mounted. Its end wakes whoever waits."""
    mountpoint = directory / "hung"
    mountpoint.mkdir()
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("no FUSE here")
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"test", os.fsencode(mountpoint), b"fuse.test", 0, options):
        os.close(device)
        pytest.skip(f"no FUSE here: {os.strerror(ctypes.get_errno())}")
    try:
        yield mountpoint
    finally:
        os.close(device)
        subprocess.run(["umount", "--lazy", mountpoint], check=True)
