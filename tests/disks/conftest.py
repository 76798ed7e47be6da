"""Real disks and a real QEMU, and no guest in it: several of these can run beside each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.bare import directory
from tests.disks.importing import Target
from tests.disks.making import Bench
from tests.disks.own_vm import own_vm, place
from tests.disks.scene import Scene
from tests.host import forest, nothing_left_behind, quiesce
from tests.strangers import Stranger

__all__ = ["forest", "nothing_left_behind", "own_vm", "place", "quiesce"]


@pytest.fixture
def scene() -> Iterator[Scene]:
    with directory() as path:
        scene = Scene(path)
        yield scene
        scene.remove()


@pytest.fixture(scope="session")
def grown() -> Iterator[Scene]:
    """root - middle - (here - now, left, right), made once for all tests that begin with it."""
    with directory() as path:
        scene = Scene(path)
        for name in ("root", "middle", "here"):
            scene.create(name)
        for name in ("left", "right"):
            scene.back("middle")
            scene.create(name)
        scene.back("here")
        scene.keep()
        yield scene
        scene.begin_again()
        scene.remove()


@pytest.fixture
def three_branches(grown: Scene) -> Scene:
    grown.begin_again()
    return grown


@pytest.fixture(params=[True, False], ids=["running", "off"])
def power(request: pytest.FixtureRequest, three_branches: Scene) -> bool:
    if request.param:
        three_branches.start()
    return request.param


@pytest.fixture
def target() -> Iterator[Target]:
    with directory() as path:
        target = Target(path)
        yield target
        target.catalog.close()
        target.connection.close()


@pytest.fixture
def stranger(target: Target) -> Stranger:
    return Stranger(target.path / "export")


@pytest.fixture
def bench() -> Iterator[Bench]:
    with directory() as path:
        found = Bench(path)
        with found.stack:
            yield found
