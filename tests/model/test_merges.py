"""Trees of checkpoints on images in memory: whatever is done, in whatever order, and wherever it is killed, every checkpoint
and the VM keep their content. The operations are real, with the catalog; the host below them is tests/unit/fake_host.py."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quiesce.disks import shortening_plan
from tests.model.trees import STEPS, Trees
from tests.strategies import examples


def on_parts_of_the_disks(*steps: tuple[str, int]) -> Any:
    """A sequence that was refused: "somebody changed the backing chain". Checkpoints without all disks had been restored and
    deleted, until no disk was based on the checkpoint that the catalog had as the VM's."""
    return example(0, [(verb, number, None) for verb, number in steps])


@given(st.integers(0, 3), STEPS)
@on_parts_of_the_disks(
    ("create", 0), ("create", 0), ("create", 0), ("create_without", 1), ("create_without", 0),
    ("restore", 8), ("delete", 0), ("create", 0), ("restore", 4), ("delete", 4),
)  # fmt: skip
@on_parts_of_the_disks(
    ("create", 0), ("create_without", 0), ("create", 0), ("create", 0), ("create_without", 1), ("create_without", 0),
    ("restore", 0), ("restore", 5), ("delete", 5),
)  # fmt: skip
@examples(36)
def test_every_checkpoint_keeps_its_content(seed, steps):
    """Broken: a checkpoint, or what the VM is doing now, would be lost or changed by a deletion, or by the death of one; or
    images would be left that nobody needs."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        trees = Trees(patch, directory, seed)
        try:
            for verb, number, kill in steps:
                getattr(trees, verb)(number, kill)
            trees.end()
        finally:
            trees.close()


@given(st.integers(0, 3), STEPS)
@example(  # refused as what is `on_parts_of_the_disks`: the VM was taken to be based on a checkpoint of another branch
    1,
    [
        ("create_without", 13, 7), ("tidy", 2, None), ("power", 7, 16), ("create", 14, None), ("restore", 0, 18),
        ("create_without", 4, 30), ("create_without", 14, None), ("create", 1, 58), ("create", 4, 37), ("tamper", 9, 1),
        ("write", 1, None), ("write", 14, 16), ("restore", 3, 38), ("remove_clone", 7, None), ("clone", 1, None),
        ("remove_clone", 0, None), ("restore", 12, None), ("delete", 5, 14), ("power", 11, 0), ("create", 4, 1),
        ("tamper", 3, 0), ("restore", 8, 54), ("delete", 5, 39), ("create", 12, 4),
    ],
)  # fmt: skip
@examples(12)
def test_every_checkpoint_keeps_its_content_while_chains_are_made_shorter(seed, steps):
    """Broken: a checkpoint would be lost or changed, or the VM get other disks, when a chain is made shorter, or when that is
    killed; or images would be left that nobody needs."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(shortening_plan, "LONG", 4)
        patch.setattr(shortening_plan, "SHORT", 3)
        trees = Trees(patch, directory, seed)
        try:
            for verb, number, kill in steps:
                getattr(trees, verb)(number, kill)
            trees.end()
        finally:
            trees.close()
