"""The journal of operations. An operation writes a row before every step that changes disks, so that a later process can undo
or complete the steps of a killed one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import sqlalchemy as sa

from quiesce.catalog.database import from_column, to_column
from quiesce.catalog.schema import operations, steps
from quiesce.catalog.sqlite import RESERVE
from quiesce.catalog.steps import BY_NAME, Step
from quiesce.catalog.store import Catalog
from quiesce.model.errors import QuiesceError
from quiesce.model.keys import VmKey

S = TypeVar("S")


@dataclass(frozen=True)
class Interrupted:
    """An operation that was begun and not finished. If you can get the VM's lock, the process that began it is gone."""

    id: str
    verb: str
    started: str
    steps: tuple[tuple[Step, bool], ...]
    """The steps in their order, and whether each was done or only intended."""
    unknown: tuple[str, ...] = ()
    """Names of the steps that this quiesce does not know."""

    def of(self, kind: type[S]) -> list[S]:
        """The steps of this kind, done or not."""
        return [step for step, _ in self.steps if isinstance(step, kind)]

    def unfinished(self, kind: type[S]) -> list[S]:
        return [step for step, done in self.steps if isinstance(step, kind) and not done]


def interrupted(catalog: Catalog, key: VmKey) -> list[Interrupted]:
    """The unfinished operations on a VM, oldest first."""
    return [operation for _, operation in _unfinished(catalog, key.host, operations.c.vm_uuid == key.uuid)]


def all_interrupted(catalog: Catalog, host: str) -> list[tuple[VmKey, Interrupted]]:
    """The unfinished operations on all VMs of a host, oldest first."""
    return _unfinished(catalog, host, sa.true())


def _unfinished(catalog: Catalog, host: str, which: sa.ColumnElement[bool]) -> list[tuple[VmKey, Interrupted]]:
    query = sa.select(operations.c.vm_uuid, operations.c.id, operations.c.verb, operations.c.started)
    query = query.where(operations.c.host == host, operations.c.finished.is_(None), which).order_by(operations.c.started)
    with catalog.database.transaction() as connection:
        found = connection.execute(query).all()
        return [(VmKey(host, uuid), _read(connection, *row)) for uuid, *row in found]


def _read(connection: sa.Connection, id: str, verb: str, started: str) -> Interrupted:
    query = sa.select(steps.c.what, steps.c.details, steps.c.done).where(steps.c.operation == id).order_by(steps.c.number)
    known: list[tuple[Step, bool]] = []
    unknown = []
    for what, details, done in connection.execute(query):
        try:
            known.append((from_column(BY_NAME[what], details, f"operation {id}"), done))
        except (KeyError, QuiesceError):
            unknown.append(str(what))
    return Interrupted(id, verb, started, tuple(known), tuple(unknown))


def steps_of(catalog: Catalog, key: VmKey, *kinds: type[Step]) -> list[tuple[Step, bool]]:
    """The steps of these kinds of all operations on a VM, finished ones too, and whether each was done. Leaves out steps that
    cannot be read."""
    query = (
        sa.select(steps.c.what, steps.c.details, steps.c.done, steps.c.operation)
        .join(operations, operations.c.id == steps.c.operation)
        .where(operations.c.host == key.host, operations.c.vm_uuid == key.uuid)
        .where(steps.c.what.in_([kind.__name__ for kind in kinds]))
    )
    found = []
    with catalog.database.transaction() as connection:
        for what, details, done, id in connection.execute(query.order_by(operations.c.started, steps.c.number)):
            with suppress(QuiesceError):
                found.append((from_column(BY_NAME[what], details, f"operation {id}"), bool(done)))
    return found


def finish(catalog: Catalog, operation_id: str, outcome: str) -> None:
    """Closes an operation: nothing is left that a recovery would have to do. `outcome`: a text for people."""
    with catalog.database.transaction() as connection:
        connection.execute(
            sa.update(operations)
            .where(operations.c.id == operation_id)
            .values(finished=datetime.now(UTC).isoformat(), outcome=outcome)
        )


_RESERVE = "reserve"
"""The verb of a row that keeps room for an operation, until that begins."""
_ABANDONED_AFTER = timedelta(hours=1)


class Journal:
    """One operation on one VM. Raises NoSpaceError, before anything is changed, if the catalog has no room for its steps."""

    def __init__(self, catalog: Catalog, key: VmKey, verb: str) -> None:
        self._catalog = catalog
        self.key = key
        self.id = uuid.uuid4().hex
        self._next = 0
        row = {"id": self.id, "host": key.host, "vm_uuid": key.uuid, "verb": verb, "started": datetime.now(UTC).isoformat()}
        if catalog.database.file:
            self._reserve(row)
        with catalog.database.transaction() as connection:
            connection.execute(sa.delete(operations).where(operations.c.id == self.id))
            connection.execute(sa.insert(operations).values(**row))
        catalog.database.reuse_log()

    def _reserve(self, row: Mapping[str, str]) -> None:
        """Has the catalog's file and its log grow by a row of RESERVE bytes. They keep that room for the rows that follow when
        the row is removed. If that fails, or is killed, the row is nobody's, and a later operation on the VM removes it."""
        long_ago = (datetime.now(UTC) - _ABANDONED_AFTER).isoformat()
        reserve = {"verb": _RESERVE, "finished": row["started"], "outcome": "-" * RESERVE}
        with self._catalog.database.transaction() as connection:
            connection.execute(
                sa.delete(operations).where(
                    operations.c.host == self.key.host,
                    operations.c.vm_uuid == self.key.uuid,
                    operations.c.verb == _RESERVE,
                    operations.c.started < long_ago,
                )
            )
            connection.execute(sa.insert(operations).values({**row, **reserve}))

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        """Records the step as intended before the block, and as done after it. If the block raises, the step stays intended."""
        number = self.intend(step)
        yield
        self.done(number)

    def intend(self, step: Step) -> int:
        number, self._next = self._next, self._next + 1
        with self._catalog.database.transaction() as connection:
            connection.execute(
                sa.insert(steps).values(
                    operation=self.id, number=number, what=type(step).__name__, details=to_column(step), done=False
                )
            )
        return number

    def done(self, number: int) -> None:
        with self._catalog.database.transaction() as connection:
            connection.execute(sa.update(steps).where(steps.c.operation == self.id, steps.c.number == number).values(done=True))

    def read(self) -> Interrupted:
        """The operation as a later process would read it."""
        with self._catalog.database.transaction() as connection:
            row = connection.execute(
                sa.select(operations.c.id, operations.c.verb, operations.c.started).where(operations.c.id == self.id)
            ).one()
            return _read(connection, *row)

    def finish(self, outcome: str) -> None:
        finish(self._catalog, self.id, outcome)
