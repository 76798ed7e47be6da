"""A VM, its checkpoints and what must hold of them, whatever is done to them and whenever it is killed; and the steps of which
the sequences of test_merges.py are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from quiesce import recovery
from quiesce.catalog import journal, manifest
from quiesce.catalog.journal import Journal
from quiesce.disks import fingerprints, images, merges, shortening
from quiesce.disks.survey import Survey, look_around, survey
from quiesce.model.grades import Consistency
from quiesce.model.keys import VmKey
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, Tree
from quiesce.operations import restore as restoring
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.rename import rename
from quiesce.operations.restore import restore
from tests.unit.fake_context import FakeContext
from tests.unit.fake_host import FakeHost, FakeVm
from tests.unit.memory_catalog import MemoryCatalog

BLOCKS = 3
TARGETS = ("vda", "vdb")
MAX_NODES = 7
Disks = dict[str, dict[int, str]]
"""What a guest would read, by disk."""

VERBS = [
    *["create"] * 6,
    *["create_without"] * 2,
    *["restore"] * 5,
    *["delete"] * 6,
    *["write"] * 2,
    *["power"] * 2,
    *["tamper"] * 2,
    *["delete_subtree", "rename", "clone", "remove_clone", "tidy", "mend"],
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(VERBS),
        st.integers(0, 2 * MAX_NODES),
        st.none() | st.none() | st.integers(0, 20) | st.integers(0, 60),
    ),
    min_size=16,
    max_size=32,
)
"""What to do, with which checkpoint or disk, and after how many changes to the host or the catalog the process is killed."""


class KilledError(BaseException):
    """The process is gone: nothing that it would still do happens."""


@dataclass(frozen=True)
class Moment:
    """A time at which disks stood still together."""

    number: int
    clean: bool
    """Their guest had ended as it should."""


class Trees:
    def __init__(self, patch: pytest.MonkeyPatch, directory: str, seed: int) -> None:
        self.count = 0
        self._make_predictable(patch, seed)
        self.host = FakeHost()
        self.vm = FakeVm(self.host, {target: self.host.storage.make(f"/i/{target}.qcow2") for target in TARGETS})
        self.catalog = MemoryCatalog(Path(directory))
        self.context = FakeContext("fake:///", self.catalog, lambda _: None, fake=self.host)
        self.tree = Tree((), None)
        self.contents: dict[str, Disks] = {}
        """Of every checkpoint there has been, by id."""
        self.foreign: dict[str, dict[int, str]] = {}
        """What the images of others say, by path."""
        self.expected: Disks = {target: {} for target in TARGETS}
        """What the VM holds."""
        self.moments = dict.fromkeys(TARGETS, Moment(0, clean=False))
        self.moments_of: dict[str, dict[str, Moment]] = {}
        """When the disks were as they are, now and in each checkpoint."""
        self.written = False
        """Since the VM was started."""
        self.coming: Disks = {}
        """What of it is being restored: until that has ended, it may or may not have taken effect."""
        self.coming_moments: dict[str, Moment] = {}
        self.sources: dict[str, str] = {}
        """What the VM wrote before."""
        self.tampered: set[str] = set()
        """The images that another program wrote into."""
        self.harmed: set[str] = set()
        """Ids of the checkpoints that read one of these images, or were taken on one before that was recorded."""
        self.left: int | None = None
        self.dead = False
        self.host.on_step = self.catalog.on_step = self.step
        self.catalog.on_change = self.changed
        self.vm.on_copied = lambda: self.write(0)
        self.vm.on_stopped = self.stopped

    def _make_predictable(self, patch: pytest.MonkeyPatch, seed: int) -> None:
        def number() -> str:
            self.count += 1
            return hashlib.sha256(f"{seed}.{self.count}".encode()).hexdigest()

        numbers = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=number()[:32]))
        patch.setattr(images, "secrets", SimpleNamespace(token_hex=lambda size: number()[: 2 * size]))
        patch.setattr(journal, "uuid", numbers)
        patch.setattr(restoring, "uuid", numbers)
        patch.setattr(shortening, "uuid", numbers)

    def close(self) -> None:
        self.catalog.on_change = self.catalog.on_step = lambda: None
        self.catalog.close()

    # -- what must hold between any two steps

    def step(self) -> None:
        if self.dead:
            raise KilledError
        self.check()
        if self.left is not None:
            if self.left == 0:
                self.dead = True
                raise KilledError
            self.left -= 1

    def changed(self) -> None:
        self.tree = self.catalog.checkpoints.tree(VmKey("host1", self.vm.uuid))
        for node in self.tree.nodes:
            if node.id not in self.contents and not node.hidden:
                self.contents[node.id] = {disk.target: dict(self.expected[disk.target]) for disk in node.disks}
                if self.vm.active():
                    self.stopped(clean=False)  # if only for an instant
                self.moments_of[node.id] = {disk.target: self.moments[disk.target] for disk in node.disks}
                self.check_label(node)
                if node.changed:
                    assert self.read(disk.path for disk in node.disks) & self.tampered
                    self.harmed.add(node.id)
        self.check()

    def check(self) -> None:
        assert self.head() in (self.expected, self.expected | self.coming), self.head()
        for node in self.tree.checkpoints:
            for disk in node.disks:
                assert self.host.storage.blocks(disk.path) == self.contents[node.id][disk.target], (node.name, disk)
        for path, content in self.foreign.items():
            assert self.host.storage.blocks(path) == content, path

    def check_label(self, node: Checkpoint) -> None:
        moments = set(self.moments_of[node.id].values())
        consistent = len(moments) == 1 and all(moment.clean for moment in moments)
        assert consistent or node.consistency is Consistency.CRASH

    def check_harm(self) -> None:
        """Every checkpoint that reads an image which another program wrote into is shown so, and no other checkpoint is,
        whatever quiesce did to the images itself."""
        for node in fingerprints.tree_as_it_is(self.context, self.vm).checkpoints:
            assert set(node.changed) <= self.tampered, node
            assert bool(node.changed) == (node.id in self.harmed), node
            assert not node.changed or node.consistency is Consistency.CRASH, node

    def read(self, paths: Iterable[str]) -> set[str]:
        return {image for path in paths for image in self.host.storage.chain(path)}

    def stopped(self, clean: bool) -> None:
        """A guest that ended uncleanly and had written nothing left its disks as they were."""
        if self.written or clean:
            self.count += 1
            self.moments = dict.fromkeys(TARGETS, Moment(self.count, clean))
        self.written = self.vm.active()

    def head(self) -> Disks:
        return {target: self.host.storage.blocks(path) for target, path in self.vm.sources().items()}

    def survey(self) -> Survey:
        """With what others made of the images."""
        return look_around(self.context, self.vm, survey(self.context, self.vm))

    # -- what is done

    def run(self, kill: int | None, operation: Callable[[], Any]) -> Any:
        """The operation's result; None if it was killed."""
        self.left = kill
        result = None
        try:
            result = operation()
        except BaseException:
            if not self.dead:
                raise
        killed, self.left, self.dead = self.dead, None, False
        self.changed()
        if not killed:
            self.check_rest()
        return result

    def check_rest(self) -> None:
        """After an operation that was not killed."""
        assert journal.interrupted(self.catalog, VmKey("host1", self.vm.uuid)) == []
        self.survey().require_known_chain(self.vm.heads())
        assert {f"/i/{manifest.name(node.id)}" for node in self.tree.checkpoints} <= self.host.storage.files.keys()
        self.check_harm()

    def check_files(self) -> None:
        """After an operation that removes what is not needed: all that is needed is there, and nothing else."""
        found = self.survey()
        others = {f"/i/{target}.qcow2" for target in TARGETS} | found.chains.needed(self.foreign)
        there = self.host.storage.files.keys() - others
        needed = found.needed() | {f"/i/{manifest.name(node.id)}" for node in self.tree.nodes}
        assert there == needed - others, (there - needed, needed - there)

    def write(self, number: int, _kill: int | None = None) -> None:
        """By the guest."""
        if self.vm.active():
            self.count += 1
            disk, block = TARGETS[(number + self.count) % len(TARGETS)], self.count % BLOCKS
            self.notice_restore()
            self.expected[disk][block] = f"w{self.count}"
            self.written = True
            self.vm.write(disk, block, f"w{self.count}")

    def power(self, number: int, _kill: int | None) -> None:
        self.vm.job_completes = bool(number % 2)
        if self.vm.active():
            self.vm.power_off(clean=number % 3 > 0)
        else:
            self.vm.start()

    def create(self, _number: int, kill: int | None, excluded: tuple[str, ...] = ()) -> None:
        self.count += 1
        name = f"c{self.count}"
        if len(self.tree.checkpoints) < MAX_NODES:
            self.run(kill, lambda: checkpoint(self.context, "web1", name=name, required=Consistency.CRASH, exclude=excluded))

    def create_without(self, number: int, kill: int | None) -> None:
        self.create(number, kill, (TARGETS[number % len(TARGETS)],))

    def reference(self, number: int) -> CheckpointReference | None:
        nodes = self.tree.checkpoints
        return CheckpointReference("web1", nodes[number % len(nodes)].name) if nodes else None

    def restore(self, number: int, kill: int | None) -> None:
        self.run(None, lambda: recovery.recover_all(self.context, self.vm))
        if reference := self.reference(number):
            node = self.tree.find(reference.checkpoint)
            discard = number % 3 == 0 or len(self.tree.checkpoints) >= MAX_NODES
            self.sources = self.vm.sources()
            self.coming = {target: dict(content) for target, content in self.contents[node.id].items()}
            self.coming_moments = dict(self.moments_of[node.id])
            call = partial(
                restore, self.context, reference, discard_current=discard, start=number % 2 == 0, accept_changed=True
            )
            if self.run(kill, call):
                self.check_files()
            else:
                self.run(None, lambda: recovery.recover_all(self.context, self.vm))
            self.notice_restore()
            self.coming = {}
            self.check()

    def notice_restore(self) -> None:
        sources = self.vm.sources()
        if self.coming and all(sources[target] != self.sources[target] for target in self.coming):
            self.expected |= self.coming
            self.moments |= self.coming_moments
            self.coming = {}

    def delete(self, number: int, kill: int | None, subtree: bool = False) -> None:
        if reference := self.reference(number):
            result = self.run(kill, lambda: delete(self.context, [reference], subtree=subtree))
            if result:
                self.check_files()
            if result and not self.vm.active() and not self.foreign:
                assert result.waiting == ()
                assert not merges.anything_to_do(self.survey())

    def delete_subtree(self, number: int, kill: int | None) -> None:
        self.delete(number, kill, subtree=True)

    def rename(self, number: int, kill: int | None) -> None:
        if reference := self.reference(number):
            self.count += 1
            self.run(kill, lambda: rename(self.context, reference, f"r{self.count}"))

    def clone(self, number: int, _kill: int | None) -> None:
        """Somebody makes an image of their own on one of ours that is not written any more; perhaps for a VM that runs."""
        below = sorted({disk.path for node in self.tree.checkpoints for disk in node.disks})
        if below and not self.foreign:
            self.count += 1
            path = self.host.storage.make(f"/i/foreign{self.count}", below[number % len(below)], {0: f"f{self.count}"})
            self.foreign[path] = self.host.storage.blocks(path)
            if number % 2:
                self.host.open_elsewhere.add(path)

    def remove_clone(self, _number: int = 0, _kill: int | None = None) -> None:
        for path in self.foreign:
            del self.host.storage.files[path]
        self.foreign.clear()
        self.host.open_elsewhere.clear()

    def tidy(self, _number: int, kill: int | None) -> None:
        """As the doctor does."""
        if self.run(kill, self._tidy) is not None:
            self.check_files()

    def _tidy(self) -> tuple[merges.Waiting, ...]:
        recovery.recover_all(self.context, self.vm)
        operation = Journal(self.catalog, VmKey("host1", self.vm.uuid), "delete")
        waiting = merges.merge_hidden(self.context, self.vm, operation)
        operation.finish("done")
        return waiting

    def tamper(self, number: int, _kill: int | None) -> None:
        """Another program writes into an image of a checkpoint. It writes what is there, so that the content of everything can
        be compared as before. QEMU's locks keep it away from images that a running VM reads."""
        self.run(None, lambda: recovery.recover_all(self.context, self.vm))
        needed = self.read(disk.path for node in self.tree.checkpoints for disk in node.disks)
        if free := sorted(needed - self.read((self.vm.live or {}).values())):
            path = free[number % len(free)]
            self.host.storage.touch(path)
            self.tampered.add(path)
            moment = Moment(-len(self.tampered), clean=False)
            for node in self.tree.nodes:
                for disk in node.disks if node.id in self.contents else ():
                    if path in self.read([disk.path]):
                        self.harmed.add(node.id)
                        self.moments_of[node.id][disk.target] = moment
            for target, source in self.vm.sources().items():
                if path in self.read([source]):
                    self.moments[target] = moment
            assert path in self.survey().changed
            self.check_harm()

    def mend(self, _number: int, kill: int | None) -> None:
        self.run(kill, self._mend)

    def _mend(self) -> None:
        recovery.recover_all(self.context, self.vm)
        found, operation = self.survey(), Journal(self.catalog, VmKey("host1", self.vm.uuid), "doctor")
        fingerprints.lower_for_good(self.context, self.vm, operation, found, found.changed)
        operation.finish("done")
        assert not self.survey().changed

    def end(self) -> None:
        """When the VM is off and nobody else is in the way, nothing is left to do, and nothing that nobody needs."""
        if self.vm.active():
            self.vm.power_off()
        self.remove_clone()
        assert self.run(None, self._tidy) == ()
        self.run(None, self._mend)
        self.check_files()
        found = self.survey()
        owners = found.owners()
        for node in found.tree.nodes:
            dependents = [found.chains.dependents(disk.path, owners) for disk in node.disks if owners.get(disk.path) is node]
            assert not node.hidden or (dependents and max(map(len, dependents)) > 1 and min(map(len, dependents)) != 1)
        assert not found.merged & found.needed()
