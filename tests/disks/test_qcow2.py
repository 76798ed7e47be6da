"""storage/qcow2.py against the real qemu-img: what it takes, QEMU reads without any other file."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from quiesce.model.errors import UsageError
from quiesce.storage import qcow2

CAPACITY = 2**20
OPTIONS = (
    (), ("-o", "cluster_size=512"), ("-o", "cluster_size=2M"), ("-o", "lazy_refcounts=on"), ("-o", "extended_l2=on"),
    ("-u", "-b", "/x", "-F", "raw"), ("-o", "compat=0.10"), ("-o", "refcount_bits=1"), ("-o", "compression_type=zstd"),
)  # fmt: skip


def taken(content: bytes) -> bool:
    try:
        qcow2.check_header("x", content[:65536], size=len(content), capacity=CAPACITY)
    except UsageError:
        return False
    return True


def test_what_is_taken_needs_no_other_file(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Broken: an image would pass that QEMU reads otherwise than our parser does."""
    seed = random.randrange(2**32)  # noqa: S311
    print(f"seed {seed}")
    dice, path = random.Random(seed), tmp_path / "image"  # noqa: S311
    originals, taken_of_mutants = [], 0
    for options in OPTIONS:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, str(CAPACITY)], check=True)
        originals.append(path.read_bytes())
    assert [taken(content) for content in originals] == [True, True, True, True, False, False, False, True, False]
    for _ in range(20_000 if request.config.getoption("--long") else 400):
        content = bytearray(dice.choice(originals))
        for _ in range(dice.randint(1, 3)):
            at = dice.choice([dice.randrange(120), dice.randrange(120), dice.randrange(600)])
            content[at] = dice.choice([0, 1, 2, 4, 0xFF, dice.randrange(256)])
        if not taken(bytes(content)):
            continue
        taken_of_mutants += 1
        path.write_bytes(content)
        asked = subprocess.run(
            ["qemu-img", "info", "-f", "qcow2", "--output=json", path], capture_output=True, timeout=20, check=False
        )
        if asked.returncode == 0:
            found = json.loads(asked.stdout)
            assert found["virtual-size"] == CAPACITY
            assert not {"backing-filename", "full-backing-filename", "encrypted", "snapshots"} & found.keys()
            assert not {"data-file", "encrypt", "bitmaps"} & found["format-specific"]["data"].keys()
    assert taken_of_mutants > 20
