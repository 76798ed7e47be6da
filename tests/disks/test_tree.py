"""Trees of checkpoints on real disks: whatever is done in whatever order, every checkpoint keeps its content."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from lab.bare import pool
from lab.forest import SIZE, TARGETS, UNIT, Disks, Forest, all_read_as, check
from quiesce.catalog import exported
from quiesce.disks.merges import anything_to_do
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Tree
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.export import export
from quiesce.operations.import_ import import_vm
from quiesce.operations.rename import rename
from quiesce.operations.restore import restore

STEPS = 100
"""Of each part, in one sequence; with --long fifty such sequences. tests/model/test_merges.py tries the same verbs, and kills
them, on images in memory, which takes a hundredth of the time."""
PARTS = 3
"""Each on a VM of its own, so that they can run beside each other."""
MAX_NODES = 20


class Trees(RuleBasedStateMachine):
    """The model: what each checkpoint and the VM hold, as bytes; the tree as names."""

    forest: Forest
    steps = 0
    turn = 0
    """Counts the steps of one VM: what takes long is possible only in some of them."""

    @initialize(running=st.booleans(), chance=st.integers(0, 2**30))
    def begin(self, running: bool, chance: int) -> None:
        assume(chance)  # hypothesis begins with the simplest of all sequences: one verb, again and again
        self.forest.reset()
        if running:
            self.forest.start()
        self.head: Disks = {target: bytes(SIZE) for target in TARGETS}
        self.nodes: dict[str, Disks] = {}
        self.count = 0
        self.exported: Disks | None = None
        """What the export holds, if there is one."""

    @property
    def context(self):
        return self.forest.context

    def reference(self, name: str) -> CheckpointReference:
        return CheckpointReference(self.forest.name, name)

    def tree(self) -> Tree:
        return self.forest.tree()

    def any_node(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.nodes)), label="checkpoint")

    @rule(
        disk=st.sampled_from(TARGETS),
        at=st.integers(0, SIZE // UNIT - 1),
        units=st.integers(1, 40),
        pattern=st.integers(0, 255),
    )
    def write(self, disk: str, at: int, units: int, pattern: int) -> None:
        offset = at * UNIT
        length = min(units * UNIT, SIZE - offset)
        self.forest.write(disk, offset, length, pattern)
        old = self.head[disk]
        self.head[disk] = old[:offset] + bytes([pattern]) * length + old[offset + length :]

    @precondition(lambda self: self.turn % 10 == 0)
    @rule()
    def power(self) -> None:
        if self.forest.running:
            self.forest.stop()
        else:
            self.forest.start()

    @precondition(lambda self: len(self.nodes) < MAX_NODES)
    @rule(excluded=st.sampled_from([(), (), (), ("vdb",)]))
    def create(self, excluded: tuple[str, ...]) -> None:
        self.count += 1
        name = f"c{self.count}"
        checkpoint(self.context, self.forest.name, name=name, required=Consistency.CRASH, exclude=excluded)
        self.nodes[name] = {target: data for target, data in self.head.items() if target not in excluded}

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), discard=st.booleans())
    def restore(self, data: st.DataObject, discard: bool) -> None:
        name = self.any_node(data)
        discard = discard or len(self.nodes) >= MAX_NODES
        result = restore(self.context, self.reference(name), discard_current=discard)
        if result.safety:
            self.nodes[result.safety.name] = {target: self.head[target] for target in self.nodes[name]}
        self.head = self.head | self.nodes[name]

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def rename(self, data: st.DataObject) -> None:
        name = self.any_node(data)
        self.count += 1
        rename(self.context, self.reference(name), f"r{self.count}")
        self.nodes[f"r{self.count}"] = self.nodes.pop(name)

    @precondition(lambda self: self.nodes and self.turn % 2)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = self.any_node(data)
        self.deleted(delete(self.context, [self.reference(name)]).waiting)
        del self.nodes[name]

    @precondition(lambda self: len(self.nodes) > 3 and self.turn % 3 == 0)
    @rule(data=st.data())
    def delete_subtree(self, data: st.DataObject) -> None:
        result = delete(self.context, [self.reference(self.any_node(data))], subtree=True)
        for node in result.checkpoints:
            del self.nodes[node.name]
        self.deleted(result.waiting)

    def deleted(self, waiting: tuple[object, ...]) -> None:
        if not self.forest.running:
            assert not waiting, waiting
            assert not anything_to_do(self.forest.survey())

    @precondition(lambda self: self.nodes and self.turn % 8 == 0)
    @rule(data=st.data())
    def export(self, data: st.DataObject) -> None:
        name = self.any_node(data)
        target = self.place("export")
        if self.exported is not None:
            shutil.rmtree(target)
        export(self.context, self.reference(name), str(target))
        self.exported = self.nodes[name]
        images = {f"{target}/{disk}.qcow2": content for disk, content in self.exported.items()}
        assert all_read_as(images)
        names = {exported.DOMAIN, exported.NAME, *(Path(image).name for image in images)}
        assert {file.name for file in target.iterdir()} == names

    @precondition(lambda self: self.exported is not None and self.turn % 8 == 1)
    @rule(running=st.booleans())
    def import_(self, running: bool) -> None:
        """A new VM from the export, whatever became of the checkpoint; it goes again at once."""
        target, name = self.place("copy"), f"{self.forest.name}-copy"
        imported = import_vm(self.context, str(self.place("export")), to=str(target), name=name)
        domain = self.forest.bare.connection.lookupByName(name)
        try:
            assert imported.uuid == domain.UUIDString() != self.forest.bare.domain.UUIDString()
            if running:
                domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
                domain.destroy()
            images = {f"{target}/{name}.{disk}.qcow2": content for disk, content in (self.exported or {}).items()}
            assert {str(path) for path in target.iterdir()} == set(images)
            assert all_read_as(images)
        finally:
            domain.undefine()
            shutil.rmtree(target)

    def place(self, what: str) -> Path:
        return self.forest.bare.directory / what

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        if hasattr(self, "nodes"):
            type(self).steps += 1
            self.turn += 1
            check(self.forest, self.nodes, self.head)


@pytest.fixture
def forest_pool(forest: Forest) -> Iterator[None]:
    with pool(forest.bare.directory):
        yield


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("part", range(PARTS))
def test_any_order_of_verbs(part: int, forest: Forest, request: pytest.FixtureRequest) -> None:
    """A fixed number of random steps."""
    if part:  # the first has pools made as they are needed
        request.getfixturevalue("forest_pool")
    wanted = STEPS * (50 if request.config.getoption("--long") else 1)
    machine = type("Machine", (Trees,), {"forest": forest, "steps": 0})
    while machine.steps < wanted:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=1,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=(Phase.generate,),  # a shorter sequence with the same fault would take hours to find
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            ),
        )
    print(f"{machine.steps} steps on trees of up to {MAX_NODES} checkpoints: nothing lost, no orphan")
