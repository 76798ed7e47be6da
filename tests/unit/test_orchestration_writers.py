"""The expected label, on a host in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.guests import scripted
from quiesce.model.errors import ConsistencyError
from quiesce.model.grades import Consistency, Grade
from quiesce.model.reports import OpenFiles
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


def test_nobody_holds_what_quiesce_does_not_know(world):
    """Broken: a program that has a file open would make the window of every checkpoint longer."""
    world.vm()
    unknown = replace(scripted.writer("unaccounted:/bin/cp", grade=Grade.CRASH), required=False)
    unknown = replace(unknown, not_accounted_for=OpenFiles("/bin/cp", "", ("/srv/a",), 1, kept=False))
    world.guests["web1"].writers = (unknown,)
    node = world.take(world.host.vms[0])
    assert node.consistency is Consistency.APPLICATION
    assert node.writers == (unknown,)
    assert [step for step in world.guests["web1"].story if step.startswith(("hold", "release"))] == []
    world.guests["web1"].writers = (unknown, replace(unknown, id="unaccounted:db", required=True, reason="why"))
    with pytest.raises(ConsistencyError, match="only be filesystem-consistent, application is required: unaccounted:db: why"):
        world.take(world.host.vms[0], "b")
