"""What several files here take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from quiesce.catalog import lock
from quiesce.catalog.store import Catalog
from quiesce.disks.survey import Survey, look_around, survey
from quiesce.model.events import Event, Warned
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, Tree
from tests.unit.fake_context import FakeContext
from tests.unit.fake_host import FakeHost, FakeVm
from tests.unit.memory_catalog import MemoryCatalog
from tests.unit.world import World


@dataclass
class Fake:
    """A host in memory with a VM of one disk, and all that operations need of it."""

    host: FakeHost
    vm: FakeVm
    catalog: MemoryCatalog
    context: FakeContext
    heard: list[Event]

    def tree(self) -> Tree:
        return self.catalog.checkpoints.tree(self.vm.key)

    def survey(self) -> Survey:
        """With what others made of the images."""
        return look_around(self.context, self.vm, survey(self.context, self.vm))

    def warnings(self) -> list[str]:
        return [event.message for event in self.heard if isinstance(event, Warned)]

    def own(self, path: str, below: str | None = None, blocks: dict[int, str] | None = None) -> str:
        """An image of ours."""
        self.catalog.images.note(self.vm.key, path)
        return self.host.storage.make(path, below, blocks)

    def add(self, node: Checkpoint) -> Checkpoint:
        """A checkpoint, on which the VM stands."""
        self.catalog.checkpoints.add(node, self.vm.definition(), head_parent=node.id)
        return node


def reference(name: str) -> CheckpointReference:
    return CheckpointReference("web1", name)


@pytest.fixture
def again(tmp_path: Path) -> Iterator[Callable[..., Fake]]:
    """Makes a host, each time another one; the last is the one that operations see."""
    made: list[Fake] = []

    def make(disks: tuple[str, ...] = ("vda",)) -> Fake:
        host = FakeHost()
        vm = FakeVm(host, {target: host.storage.make(f"/i/{target}.qcow2") for target in disks})
        catalog = MemoryCatalog(tmp_path)
        heard: list[Event] = []
        made.append(Fake(host, vm, catalog, FakeContext("fake:///", catalog, heard.append, fake=host), heard))
        return made[-1]

    yield make
    for fake in made:
        fake.catalog.close()


@pytest.fixture
def fake(again: Callable[..., Fake]) -> Fake:
    return again()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    yield World(FakeHost(), catalog)
    catalog.close()


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For catalogs that are no files: their locks are not those of this host's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "RUN", tmp_path_factory.mktemp("run"))
        yield


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of a catalog that is not there yet."""
    return f"sqlite:///{tmp_path}/state/catalog.db"


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    opened = Catalog(url)
    yield opened
    opened.close()
