"""lab/cache.py: an entry is not used when it, or what it was made from, is not what it was."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import cache


def made(path: Path, base: Path | None = None) -> bool:
    """Whether the entry had to be made."""
    with cache.entry(path) as directory:
        if directory is None:
            return False
        on = ["-b", str(base / "vda.qcow2"), "-F", "qcow2"] if base else ["-o", "size=1M"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *on, str(directory / "vda.qcow2")], check=True)
        return True


def prune(base: Path) -> None:
    shutil.rmtree(base)


def prune_and_make_anew(base: Path) -> None:
    shutil.rmtree(base)
    assert made(base)


def write_to(base: Path) -> None:
    subprocess.run(["qemu-io", "-c", "write -q 0 64k", str(base / "vda.qcow2")], check=True)


@pytest.mark.parametrize("harm", [prune, prune_and_make_anew, write_to])
def test_what_was_made_from_another_base_is_made_anew(harm: Callable[[Path], None], tmp_path: Path) -> None:
    """Broken: a guest would be resumed on disks that its memory knows nothing of."""
    base, above, top = tmp_path / "image-1", tmp_path / "saved-1-booted", tmp_path / "saved-1-agent"
    assert [made(base), made(above, base), made(top, above)] == [True] * 3
    assert [made(base), made(above, base), made(top, above)] == [False] * 3
    harm(base)
    made(base)
    assert [made(above, base), made(top, above)] == [True] * 2
    assert [made(base), made(above, base), made(top, above)] == [False] * 3
