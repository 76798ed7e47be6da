"""The short form of script/chaos, as far as it kills libvirt or needs a guest; tests/disks/test_chaos.py has the rest."""

from __future__ import annotations

import random

import pytest

from lab import Image, chaos
from lab.grove import Tally


@pytest.mark.timeout(400)
def test_libvirt_or_qemu_killed_in_the_middle_of_a_merge() -> None:
    """Broken: the checkpoints above or below the one that is deleted, or what the VM does now, would be lost."""
    tally = Tally()
    chaos.in_the_middle_of_a_merge(tally, print)
    assert tally.good(), tally
    assert tally.kills == 4
    assert tally.notes == []


@pytest.mark.timeout(400)
def test_a_guests_checkpoint_killed_at_random_moments(image: Image, request: pytest.FixtureRequest) -> None:
    """Broken: a guest would stay frozen, or something be left of the attempt."""
    seed = random.randrange(2**32)  # noqa: S311
    print(f"seed {seed}")
    times = chaos.FREEZES * (10 if request.config.getoption("--long") else 1)
    tally = Tally()
    chaos.freezing(tally, times, print, random.Random(seed))  # noqa: S311
    assert tally.good(), tally
    assert tally.kills == times
