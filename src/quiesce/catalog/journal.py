"""The journal of operations. An operation writes a row before every step that changes disks, so that a later process can undo
or complete the steps of a killed one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import sqlalchemy as sa

from quiesce.catalog.database import from_column, to_column
from quiesce.catalog.schema import operations, steps
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
    with catalog.database.transaction() as connection:
        found = connection.execute(
            sa.select(operations.c.id, operations.c.verb, operations.c.started)
            .where(operations.c.host == key.host, operations.c.vm_uuid == key.uuid)
            .where(operations.c.finished.is_(None))
            .order_by(operations.c.started)
        ).all()
        return [_read(connection, *row) for row in found]


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


def finish(catalog: Catalog, operation_id: str, outcome: str) -> None:
    """Closes an operation: nothing is left that a recovery would have to do. `outcome`: a text for people."""
    with catalog.database.transaction() as connection:
        connection.execute(
            sa.update(operations)
            .where(operations.c.id == operation_id)
            .values(finished=datetime.now(UTC).isoformat(), outcome=outcome)
        )


class Journal:
    """One operation on one VM."""

    def __init__(self, catalog: Catalog, key: VmKey, verb: str) -> None:
        self._catalog = catalog
        self.key = key
        self.id = uuid.uuid4().hex
        self._next = 0
        with catalog.database.transaction() as connection:
            connection.execute(
                sa.insert(operations).values(
                    id=self.id, host=key.host, vm_uuid=key.uuid, verb=verb, started=datetime.now(UTC).isoformat()
                )
            )

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
