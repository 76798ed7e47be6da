"""VMs in memory whose guests follow a script, and all that operations need of them."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from quiesce.catalog import journal
from quiesce.catalog.store import Catalog
from quiesce.guests import scripted
from quiesce.guests.scripted import ScriptedGuest
from quiesce.hypervisor.domain_xml import Channel
from quiesce.model.events import Event, Warned
from quiesce.model.grades import Consistency
from quiesce.model.groups import Group, Member, Tier
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, Tree
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.restore import Restored, restore
from quiesce.wire.messages import PORT_NAME
from tests.unit.fake_context import FakeContext
from tests.unit.fake_host import FakeHost, FakeVm

WINDOW_S = 10.0
"""Nobody waits for its end; a busy machine needs the room."""


def uuid_of(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


@dataclass
class World:
    """VMs with a guest each. The catalog is a real file, as guests are asked in threads."""

    host: FakeHost
    catalog: Catalog
    heard: list[Event] = field(default_factory=list)
    guests: dict[str, ScriptedGuest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context = FakeContext(
            "fake:///", self.catalog, self.heard.append, fake=self.host, guests=self.guests, real_locks=True
        )

    def vm(
        self,
        name: str = "web1",
        *,
        running: bool = True,
        writers: tuple[str, ...] = ("postgresql:main",),
        targets: tuple[str, ...] = ("vda",),
    ) -> FakeVm:
        """A VM whose first disk is /i/NAME.qcow2; it says "at first" in block 0."""
        files = {"vda": f"/i/{name}.qcow2"} | {target: f"/i/{name}-{target}.qcow2" for target in targets if target != "vda"}
        disks = {target: self.host.storage.make(path, blocks={0: "at first"}) for target, path in files.items()}
        vm = FakeVm(self.host, disks, name=name, uuid=uuid_of(name))
        vm.channels = {PORT_NAME: Channel(PORT_NAME, connected=True)}
        self.guests[name] = ScriptedGuest([scripted.writer(id) for id in writers])
        if running:
            vm.start()
        return vm

    def group(self, *names: str, **tiers: Tier) -> None:
        """The group `shop`; a member without a tier is a back end."""
        members = tuple(Member("host1", uuid_of(name), name, tiers.get(name, Tier.BACK)) for name in names)
        self.catalog.groups.put(Group("shop", members), new=True)

    def tree(self, vm: FakeVm) -> Tree:
        return self.catalog.checkpoints.tree(vm.key)

    def names(self, vm: FakeVm) -> list[str]:
        return [node.name for node in self.tree(vm).checkpoints]

    def content(self, vm: FakeVm, target: str = "vda") -> dict[int, str]:
        """What the VM's guest reads."""
        return self.host.storage.blocks(vm.sources()[target])

    def without_catalog(self, directory: Path) -> World:
        """The same host after its catalog was lost, but not the catalog's key. `directory`: of the new catalog."""
        directory.mkdir()
        self.catalog.seal.of(b"")
        shutil.copy(self.catalog.database.state_directory() / "seal.key", directory)
        return World(self.host, Catalog(f"sqlite:///{directory}/catalog.db"), guests=self.guests)

    def warnings(self) -> list[str]:
        return [event.message for event in self.heard if isinstance(event, Warned)]

    def take(self, vm: FakeVm, name: str = "a", required: Consistency = Consistency.APPLICATION) -> Checkpoint:
        return checkpoint(self.context, vm.name, name=name, required=required, window_s=WINDOW_S)

    def restore(self, vm: FakeVm, name: str = "a", *, start: bool = False, discard_current: bool = False) -> Restored:
        reference = CheckpointReference(vm.name, name)
        return restore(self.context, reference, start=start, discard_current=discard_current)

    def nothing_left(self, vm: FakeVm) -> None:
        """No checkpoint, no overlay, nothing unfinished, and nobody held."""
        assert self.tree(vm).nodes == ()
        assert {path for path in self.host.storage.files if path.startswith(f"/i/{vm.name}.")} == {f"/i/{vm.name}.qcow2"}
        assert vm.sources()["vda"] == f"/i/{vm.name}.qcow2"
        assert journal.interrupted(self.catalog, vm.key) == []
        guest = self.guests[vm.name]
        assert (guest.frozen, guest.held) == (False, set())
