"""The expected label, on a host in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.guests import scripted
from quiesce.model.errors import ConsistencyError
from quiesce.model.grades import Consistency, Grade
from quiesce.operations.writers import writers


def test_what_is_expected_depends_on_required_writers_alone(world):
    """Broken: a program that does not matter would make everybody believe that no checkpoint can be had."""
    world.vm()
    cache = scripted.writer("cache", grade=Grade.REFUSED)
    world.guests["web1"].writers = (scripted.writer("postgresql:main"), replace(cache, required=False))
    assert writers(world.context, "web1").expected is Consistency.APPLICATION
    world.guests["web1"].writers = (scripted.writer("postgresql:main"), cache)
    assert writers(world.context, "web1").expected is Consistency.FILESYSTEM
    with pytest.raises(ConsistencyError, match="only be filesystem-consistent"):
        world.take(world.host.vms[0])
