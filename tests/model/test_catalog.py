"""catalog/store.py against plain dictionaries, over any sequence of changes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from quiesce.catalog.store import Catalog
from quiesce.model.errors import NameTakenError
from quiesce.model.keys import VmKey
from quiesce.model.tree import Checkpoint, DiskImage
from tests.samples import node
from tests.strategies import examples

_VMS = ["uuid-1", "uuid-2"]
_NAMES = ["before", "after", "x"]
_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "remove", "hide", "rename", "move", "head", "rehome", "reopen"]),
        st.sampled_from(_VMS),
        st.sampled_from(_NAMES),
        st.integers(0, 20),
    ),
    max_size=15,
)


@dataclass
class Vm:
    """What ought to be known of one."""

    nodes: dict[str, Checkpoint] = field(default_factory=dict)
    head: str | None = None
    images: set[str] = field(default_factory=set)
    merged: set[str] = field(default_factory=set)

    def names(self) -> set[str]:
        return {item.name for item in self.nodes.values() if not item.hidden}

    def any(self, number: int) -> Checkpoint | None:
        return list(self.nodes.values())[number % len(self.nodes)] if self.nodes else None


class Model:
    def __init__(self, url: str) -> None:
        self.url = url
        self.catalog = Catalog(url)
        self.vms = {uuid: Vm() for uuid in _VMS}
        self.count = 0

    def add(self, uuid: str, name: str, number: int) -> None:
        self.count += 1
        vm, parent = self.vms[uuid], self.vms[uuid].any(number)
        new = node(f"id{self.count:02}", name=name, vm_uuid=uuid, parent=parent.id if parent else None)
        path = new.disks[0].path
        self.catalog.images.note(VmKey("host1", uuid), path)
        vm.images.add(path)
        try:
            self.catalog.checkpoints.add(new, f"<{new.id}/>", head_parent=new.id)
        except NameTakenError:
            assert name in vm.names()
        else:
            assert name not in vm.names()
            vm.nodes[new.id], vm.head = new, new.id

    def remove(self, uuid: str, _name: str, number: int) -> None:
        vm = self.vms[uuid]
        if gone := vm.any(number):
            vm.head = gone.parent if vm.head == gone.id else vm.head
            self.catalog.checkpoints.remove(gone, vm.head)
            del vm.nodes[gone.id]
            vm.nodes = {
                key: replace(item, parent=gone.parent) if item.parent == gone.id else item for key, item in vm.nodes.items()
            }

    def hide(self, uuid: str, _name: str, number: int) -> None:
        vm = self.vms[uuid]
        if hidden := vm.any(number):
            self.catalog.checkpoints.update(replace(hidden, hidden=True))
            vm.nodes[hidden.id] = replace(hidden, hidden=True)

    def rename(self, uuid: str, name: str, number: int) -> None:
        vm = self.vms[uuid]
        old = vm.any(number)
        if old and not old.hidden:
            try:
                self.catalog.checkpoints.update(replace(old, name=name))
            except NameTakenError:
                assert name in vm.names() - {old.name}
            else:
                assert name not in vm.names() - {old.name}
                vm.nodes[old.id] = replace(old, name=name)

    def move(self, uuid: str, _name: str, number: int) -> None:
        vm = self.vms[uuid]
        if old := vm.any(number):
            path = old.disks[0].path
            moved = self.catalog.checkpoints.moved(VmKey("host1", uuid), path, f"{path}+", "raw", {})
            assert {node.id for node in moved} == {node.id for node in vm.nodes.values() if path in node.paths()}
            vm.nodes |= {node.id: node for node in moved}
            assert vm.nodes[old.id] == replace(old, disks=(DiskImage("vda", f"{path}+", "raw"),))
            vm.merged |= {path} & vm.images

    def head(self, uuid: str, _name: str, number: int) -> None:
        vm = self.vms[uuid]
        target = vm.any(number)
        vm.head = target.id if target else None
        self.catalog.checkpoints.set_head(VmKey("host1", uuid), vm.head)

    def rehome(self, uuid: str, _name: str, _number: int) -> None:
        old, other = self.vms[uuid], next(other for other in _VMS if other != uuid)
        new = self.vms[other]
        if not old.nodes:
            return
        try:
            self.catalog.rehome(VmKey("host1", uuid), VmKey("host1", other))
        except NameTakenError:
            assert old.names() & new.names()
        else:
            assert not old.names() & new.names()
            nodes = new.nodes | {key: replace(item, vm_uuid=other) for key, item in old.nodes.items()}
            self.vms[other] = Vm(nodes, old.head, old.images | new.images, old.merged | new.merged)
            self.vms[uuid] = Vm()

    def reopen(self, _uuid: str, _name: str, _number: int) -> None:
        self.catalog.close()
        self.catalog = Catalog(self.url)

    def check(self) -> None:
        for uuid, vm in self.vms.items():
            tree = self.catalog.checkpoints.tree(VmKey("host1", uuid))
            assert tree.nodes == tuple(sorted(vm.nodes.values(), key=lambda item: item.id))
            assert tree.head_parent == vm.head
            assert self.catalog.images.made_for(VmKey("host1", uuid)) == sorted(vm.images)
            assert self.catalog.images.merged(VmKey("host1", uuid)) == vm.merged
            for item in vm.nodes.values():
                assert self.catalog.checkpoints.domain_xml(item.id) == f"<{item.id}/>"
        shown = {uuid: len(vm.names()) for uuid, vm in self.vms.items() if vm.nodes}
        assert self.catalog.checkpoints.counts("host1") == shown


@given(_CHANGES)
@examples(25)
def test_the_catalog_is_what_was_put_into_it(changes):
    """Broken: after some sequence of checkpoints, merges, deletions and restores the catalog would show another tree."""
    with tempfile.TemporaryDirectory() as directory:
        model = Model(f"sqlite:///{directory}/catalog.db")
        for verb, uuid, name, number in changes:
            getattr(model, verb)(uuid, name, number)
            model.check()
        model.catalog.close()
