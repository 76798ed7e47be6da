"""What an operation reads does not grow with the neighbours: queries, records, directories and definitions are counted, beside
few other VMs and beside many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from quiesce.catalog import checkpoints as records
from quiesce.catalog.store import Catalog
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.model.settings import Settings
from quiesce.model.tree import Checkpoint
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.export import export
from quiesce.operations.rename import rename
from quiesce.operations.tree import show_checkpoint, tree
from quiesce.operations.vms import vms
from quiesce.storage.memory import MemoryStorage
from tests.unit.fake_host import FakeHost, FakeVm
from tests.unit.world import World

CRASH = Consistency.CRASH
A = CheckpointReference("web1", "a")

VERBS: dict[str, Callable[[World, FakeVm], object]] = {
    "checkpoint": lambda world, vm: world.take(vm, "new"),
    "restore": lambda world, vm: world.restore(vm, "a"),
    "restore and discard": lambda world, vm: world.restore(vm, "a", discard_current=True),
    "delete": lambda world, _: delete(world.context, [A]),
    "delete and merge": lambda world, _: delete(world.context, [CheckpointReference("web1", "b")]),
    "rename": lambda world, _: rename(world.context, A, "other"),
    "export": lambda world, _: export(world.context, A, "/export"),
    "tree": lambda world, _: tree(world.context, "web1"),
    "show": lambda world, _: show_checkpoint(world.context, A),
    "settings": lambda world, vm: world.catalog.settings.put(vm.key, Settings(require=CRASH)),
    "vms": lambda world, _: vms(world.context),
    "doctor": lambda world, _: doctor(world.context, "web1", repair=False),
}
REMOVES = ("restore and discard", "delete", "delete and merge", "doctor")
"""What removes or merges images, or examines; only these look around."""
LOOKS_AROUND = ("overlays", "contents", "names")


class Counted:
    """What was asked for during `counting`."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self.statements: list[tuple[str, Any]] = []


@contextmanager
def counting(world: World) -> Iterator[Counted]:
    counted, engine = Counted(), world.catalog.database._engine

    def on_query(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        counted.of["queries"] += 1
        counted.statements.append((statement, parameters))

    def told(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            counted.of[name] += 1
            return real(*arguments, **named)

        return call

    def body(cls: type, *arguments: Any) -> Any:
        counted.of["checkpoints"] += cls is Checkpoint
        return decode(cls, *arguments)

    decode = records.from_column
    sa.event.listen(engine, "before_cursor_execute", on_query)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(records, "from_column", body)
            patch.setattr(FakeHost, "named_files", told("named_files", FakeHost.named_files))
            for name in (*LOOKS_AROUND, "look", "image", "read"):
                patch.setattr(MemoryStorage, name, told(name, getattr(MemoryStorage, name)))
            yield counted
    finally:
        sa.event.remove(engine, "before_cursor_execute", on_query)


def beside(path: Path, others: int, verb: str) -> Counted:
    """Does it on a host on which so many other VMs have checkpoints, some of them with images in the same directory."""
    path.mkdir()
    world = World(FakeHost(), Catalog(f"sqlite:///{path}/catalog.db"))
    vm = world.vm()
    for number in range(others):
        other = world.vm(f"other{number}")
        world.host.storage.make(f"/i/clone{number}", f"/i/other{number}.qcow2")
        world.host.storage.make(f"/i/foreign{number}")
        world.take(other, "theirs")
        world.take(other, "a")
    for name in ("a", "b", "c"):
        world.take(vm, name)
    with counting(world) as counted:
        VERBS[verb](world, vm)
        for statement, parameters in list(counted.statements):
            if statement.startswith(("SELECT", "UPDATE", "DELETE")):
                with world.catalog.database.transaction() as connection:
                    plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
                counted.of.update(f"{step[-1]}: {statement}" for step in plan if step[-1].startswith("SCAN") and others > 2)
    world.catalog.close()
    return counted


@pytest.mark.parametrize("verb", VERBS)
def test_the_neighbours_cost_nothing(verb, tmp_path):
    """Broken: with each VM that is added to a host, every operation on each of the others would take longer."""
    few, many = (beside(tmp_path / str(number), number, verb) for number in (2, 12))
    scans = {name: number for name, number in many.of.items() if name.startswith("SCAN") and not _of_a_host(name)}
    assert scans == {}
    kinds = ("queries", "checkpoints", "named_files", *LOOKS_AROUND, "look", "read")
    counted = {kind: many.of[kind] - (others_of(many) if kind == "queries" else 0) for kind in kinds}
    assert counted == {kind: few.of[kind] - (others_of(few) if kind == "queries" else 0) for kind in kinds}


def others_of(counted: Counted) -> int:
    """The queries of the test itself, which asks for plans."""
    return sum(statement.startswith("EXPLAIN") for statement, _ in counted.statements)


def _of_a_host(scan: str) -> bool:
    """`vms` counts all checkpoints of the host, by the index alone; the table of groups has a row a group."""
    return "COVERING INDEX" in scan or "groups" in scan


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in REMOVES])
def test_only_what_removes_images_looks_around(verb, tmp_path):
    """Broken: a dead storage of another VM would hold up the checkpoints of this one."""
    counted = beside(tmp_path / "host", 3, verb).of
    allowed = {"contents"} if verb == "export" else set()  # of the new directory
    assert {name for name in (*LOOKS_AROUND, "named_files") if counted[name]} <= allowed
    assert counted["queries"]


def test_doctor_of_all_asks_for_each_thing_once(tmp_path):
    """Broken: `doctor` of a thousand VMs would take hours: each would be compared with all others."""
    asked = []
    for number in (3, 12):
        (tmp_path / str(number)).mkdir()
        world = World(FakeHost(), Catalog(f"sqlite:///{tmp_path}/{number}/catalog.db"))
        for place in range(number):
            world.take(world.vm(f"vm{place}"))
        with counting(world) as counted:
            assert [item.found for item in doctor(world.context, None, repair=False)] == [()] * number
        world.catalog.close()
        asked.append(counted.of)
    few, many = asked
    for once in ("named_files", "names", "overlays", "contents"):
        assert few[once] == many[once]
    for each in ("queries", "checkpoints", "look"):
        assert (many[each] - few[each]) % 9 == 0  # so many more for each of nine more VMs
        assert many[each] <= 4 * few[each]
