"""`doctor --repair` after anything that others may have done, in any order: no byte is lost that a checkpoint or the last state
of the VM consists of, a repair has nothing more to do the second time, and what is left is said.

The host is in memory (tests/unit/fake_host.py); operations, repair and catalog are real."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from quiesce.hypervisor import domain_xml
from quiesce.model.errors import QuiesceError
from quiesce.model.grades import Consistency
from quiesce.model.keys import VmKey
from quiesce.model.names import CheckpointReference
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.doctor import Diagnosis, doctor, exit_code
from quiesce.operations.restore import restore
from quiesce.storage.quarantine import NAME
from tests.strategies import examples
from tests.unit.fake_context import FakeContext
from tests.unit.fake_host import FakeHost, FakeVm
from tests.unit.memory_catalog import MemoryCatalog

OURS = ["take", "take", "take", "write", "restore", "discard", "delete", "power"]
THEIRS = [
    *["define old"] * 4,
    *["define other"] * 2,
    *["define gone", "define and start", "snapshot", "undefine", "undefine", "define with a new UUID"],
    *["write image", "remove image", "remove manifest", "unmount", "lose record", "leave file", "leave written file"],
    *["detach", "rename", "start", "stop", "killed"],
]
STEP = st.tuples(st.sampled_from([*OURS, *OURS, *THEIRS]), st.integers(0, 30))
LAST = st.lists(st.tuples(st.sampled_from(THEIRS), st.integers(0, 30)), min_size=1, max_size=3)


class KilledError(BaseException):
    pass


class Story:
    """A VM, what quiesce did to it, and what others did. `number` counts everything that is written, so that no two contents
    are alike."""

    def __init__(self, directory: Path) -> None:
        self.host = FakeHost()
        self.storage = self.host.storage
        self.catalog = MemoryCatalog(directory)
        self.context = FakeContext("fake:///", self.catalog, lambda _: None, fake=self.host)
        self.number = 0
        self.definitions: list[str] = []
        self.taken: dict[str, list[dict[int, str]]] = {}
        targets = ("vda", "vdb")
        disks = {target: self.storage.make(f"/i/{target}.qcow2", blocks={0: f"{target} at first"}) for target in targets}
        FakeVm(self.host, disks)
        self.removed: set[str] = set()

    @property
    def vm(self) -> FakeVm | None:
        return self.host.vms[0] if self.host.vms else None

    def new(self) -> int:
        self.number += 1
        return self.number

    def nodes(self) -> list[Any]:
        return [node for key in self.catalog.vms("host1") for node in self.catalog.checkpoints.readable(key)[0].checkpoints]

    def step(self, what: str, which: int) -> None:
        """Does it, if it can be done."""
        vm = self.vm
        if vm is not None:
            with contextlib.suppress(QuiesceError):
                getattr(self, what.replace(" ", "_").replace("UUID", "uuid"))(vm, which)
        self.storage.on_step = lambda: None

    # -- ours

    def take(self, vm: FakeVm, which: int) -> None:
        if len(self.nodes()) < 6:
            node = checkpoint(self.context, vm.name, name=f"c{self.new()}", required=Consistency.CRASH)
            contents = self.contents()
            self.taken[node.id] = [contents[disk.path] for disk in node.disks if disk.path in contents]
            self.definitions.append(vm.xml)
            self.write(vm, which)

    def write(self, vm: FakeVm, which: int) -> None:
        self.start(vm, which)
        for target in vm.live or {}:
            vm.write(target, which % 4, f"written {self.new()}")
        vm.power_off(clean=False)

    def _one(self, which: int) -> CheckpointReference | None:
        nodes = self.nodes()
        return CheckpointReference(nodes[which % len(nodes)].vm_uuid, nodes[which % len(nodes)].id) if nodes else None

    def restore(self, vm: FakeVm, which: int, *, discard: bool = False) -> None:
        if one := self._one(which):
            restore(self.context, one, discard_current=discard)
            self.definitions.append(vm.xml)

    def discard(self, vm: FakeVm, which: int) -> None:
        self.restore(vm, which, discard=True)

    def delete(self, _vm: FakeVm, which: int) -> None:
        if one := self._one(which):
            delete(self.context, [one])

    def power(self, vm: FakeVm, _which: int) -> None:
        vm.power_off() if vm.live else self.start(vm, _which)

    def killed(self, vm: FakeVm, which: int) -> None:
        """One of our operations is killed at its nth change."""
        left = which % 11

        def die() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError

        self.storage.on_step = die
        with contextlib.suppress(KilledError):
            (self.take, self.restore, self.delete, self.discard)[which % 4](vm, which // 2)

    # -- theirs

    def define_old(self, vm: FakeVm, which: int) -> None:
        """On any image there is or was of each disk."""
        old = [*self.definitions, None]
        chosen = old[which % len(old)]
        vm.xml = chosen or domain_xml.with_sources(vm.xml, {"vda": "/i/vda.qcow2", "vdb": "/i/vdb.qcow2"})
        vm.xml = domain_xml.restored(
            vm.xml, identity=domain_xml.Identity(vm.name, vm.uuid), generation="1", sources={}, nvram=None
        )

    def define_other(self, vm: FakeVm, which: int) -> None:
        head = vm.heads(next_start=True)["vda"]
        below = [None, head, *self.storage.chain(head)][which % 3]
        blocks = self.contents().get(head, {}) if which % 2 and below is None else {}
        path = self.storage.make(f"/i/other{self.new()}.qcow2", below if below in self.storage.files else None, blocks)
        vm.xml = domain_xml.with_sources(vm.xml, {"vda": path})

    def define_gone(self, vm: FakeVm, _which: int) -> None:
        vm.xml = domain_xml.with_sources(vm.xml, {"vda": f"/i/gone{self.new()}.qcow2"})

    def define_and_start(self, vm: FakeVm, which: int) -> None:
        vm.power_off()
        self.define_old(vm, which)
        self.write(vm, which)

    def snapshot(self, vm: FakeVm, which: int) -> None:
        head = vm.heads()["vda"]
        if vm.live and head in self.storage.files:
            vm.switch({"vda": self.storage.make(f"/i/theirs{self.new()}.qcow2", head)})
            vm.write("vda", which % 4, f"written {self.new()}")

    def undefine(self, vm: FakeVm, _which: int) -> None:
        vm.power_off()
        self.host.vms.remove(vm)

    def define_with_a_new_uuid(self, vm: FakeVm, which: int) -> None:
        vm.power_off()
        self.host.vms.remove(vm)
        if which % 2:
            self.define_old(vm, which)
        new = FakeVm(self.host, {}, name=vm.name, uuid=f"uuid-{self.new() + 1}")
        identity = domain_xml.Identity(new.name, new.uuid)
        new.xml = domain_xml.restored(vm.xml, identity=identity, generation="1", sources={}, nvram=None)

    def _image(self, which: int) -> str | None:
        images = sorted(path for path in self.storage.files if path.endswith(".qcow2"))
        return images[which % len(images)] if images else None

    def write_image(self, _vm: FakeVm, which: int) -> None:
        if path := self._image(which):
            self.storage.files[path].blocks[which % 4] = f"by hand {self.new()}"
            self.storage.touch(path)

    def remove_image(self, vm: FakeVm, which: int) -> None:
        path = self._image(which)
        if path and path not in {image for head in (vm.live or {}).values() for image in self.storage.chain(head)}:
            del self.storage.files[path]

    def remove_manifest(self, _vm: FakeVm, which: int) -> None:
        if found := sorted(path for path in self.storage.files if path.endswith(".json")):
            del self.storage.files[found[which % len(found)]]

    def unmount(self, _vm: FakeVm, _which: int) -> None:
        self.storage.unreadable["/i"] = "is it mounted?"

    def lose_record(self, _vm: FakeVm, which: int) -> None:
        """As a catalog that comes from an old backup."""
        nodes = self.nodes()
        if nodes:
            node = nodes[which % len(nodes)]
            self.catalog.checkpoints.remove(node, self.catalog.checkpoints.tree(node.key).head_parent)

    def leave_file(self, vm: FakeVm, which: int, *, written: bool = False) -> None:
        path = self.storage.make(f"/i/web1.vda.{self.new():012x}.qcow2", self._image(which))
        if written:
            self.storage.files[path].blocks[0] = f"of nobody {self.new()}"
        self.catalog.images.note(vm.key, path)

    def leave_written_file(self, vm: FakeVm, which: int) -> None:
        self.leave_file(vm, which, written=True)

    def detach(self, vm: FakeVm, _which: int) -> None:
        if not vm.live:
            vm.xml = domain_xml.exported(vm.xml, sources={"vda": vm.heads()["vda"]}, nvram=None)

    def rename(self, vm: FakeVm, _which: int) -> None:
        if not vm.live:
            vm.name = f"web{self.new()}"
            vm.xml = domain_xml.restored(
                vm.xml, identity=domain_xml.Identity(vm.name, vm.uuid), generation="1", sources={}, nvram=None
            )

    def start(self, vm: FakeVm, _which: int) -> None:
        images = {image for path in vm.heads(next_start=True).values() for image in self.storage.chain(path)}
        if not vm.live and images <= self.storage.files.keys():
            vm.start()

    def stop(self, vm: FakeVm, _which: int) -> None:
        vm.power_off()

    # -- what must not get lost

    def contents(self) -> dict[str, dict[int, str]]:
        """What a guest would read from each file that is not in a quarantine, if its whole chain is there."""
        found = {}
        for path in self.storage.files:
            if NAME not in path and set(self.storage.chain(path)) <= self.storage.files.keys():
                found[path] = self.storage.blocks(path)
        return found

    def checkpoints(self, contents: dict[str, dict[int, str]]) -> dict[tuple[str, str], dict[int, str]]:
        return {
            (node.id, disk.target): contents[disk.path] for node in self.nodes() for disk in node.disks if disk.path in contents
        }

    def last(self, contents: dict[str, dict[int, str]]) -> list[dict[int, str]]:
        """Of every image that a VM writes, wrote last, or that was written to and that no record names. Not the content of a
        deleted checkpoint, also if somebody has defined the VM on its image and nobody has written to it."""
        live = {path for key in self.catalog.vms("host1") for path in self.catalog.images.live(VmKey("host1", key.uuid))}
        heads = {path for vm in self.host.vms for path in [*vm.sources().values(), *vm.heads(next_start=True).values()]}
        written = {path for path in contents if "of nobody" in str(self.storage.files[path].blocks)}
        nodes = [node for key in self.catalog.vms("host1") for node in self.catalog.checkpoints.tree(key).nodes]
        deleted = [content for node in nodes if node.hidden for content in self.taken.get(node.id, ())]
        kept = {path for path in heads if path in live or contents.get(path) not in deleted}
        return [contents[path] for path in sorted(live | kept | written) if path in contents]

    def repair(self, **options: Any) -> list[Diagnosis]:
        names = [vm.name for vm in self.host.vms] or [key.uuid for key in self.catalog.vms("host1")]
        with contextlib.suppress(QuiesceError):
            return [found for name in names for found in doctor(self.context, name, repair=True, **options)]
        return []


@examples(60)
@example([("killed", 6)], [("define old", 19)])
@example([("take", 0), ("write", 1)], [("define old", 3)])
@example([("take", 0), ("take", 1), ("delete", 1)], [("undefine", 0)])
@example([("take", 0), ("take", 1), ("restore", 0), ("lose record", 1)], [("killed", 0)])
@given(st.lists(STEP, max_size=14), LAST)
def test_a_repair_loses_nothing(steps: list[tuple[str, int]], last: list[tuple[str, int]]) -> None:
    """Broken: a repair would remove data that are nowhere else, never come to an end, or hide what it could not mend."""
    with tempfile.TemporaryDirectory() as directory:
        story = Story(Path(directory))
        for what, which in [("take", 0), *steps, *last]:
            story.step(what, which)
        before = story.contents()
        checkpoints, data = story.checkpoints(before), story.last(before)
        unmounted = dict(story.storage.unreadable)
        found = story.repair()
        after = story.contents()
        assert story.checkpoints(after).items() >= checkpoints.items()
        assert all(content in after.values() for content in data)
        assert not any(item.done for one in story.repair() for item in one.items)
        left = {item.fault.text for one in story.repair() for item in one.items if item.left}
        if found:
            assert left <= {item.fault.text for one in found for item in one.items}
            assert exit_code(found) == 11 or not left
        if unmounted:  # what was not to be seen is whole when it is there again
            story.storage.unreadable.clear()
            story.repair()
            assert story.checkpoints(story.contents()).items() >= checkpoints.items()
        story.catalog.close()
