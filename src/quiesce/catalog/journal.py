"""What is being done: a row precedes every step that changes disks, so that nothing a killed process left is a riddle."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from quiesce.catalog.store import Catalog, operations_table, steps_table


@dataclass(frozen=True)
class Step:
    what: str
    details: dict[str, Any]
    done: bool


@dataclass(frozen=True)
class Interrupted:
    """An operation that was begun and not finished, and whose owner is gone if the VM's lock can be had."""

    id: str
    verb: str
    started: str
    steps: tuple[Step, ...]
    """What was intended, done or not, in order."""

    def details(self, what: str) -> list[dict[str, Any]]:
        return [step.details for step in self.steps if step.what == what]

    def unfinished(self, what: str) -> list[dict[str, Any]]:
        return [step.details for step in self.steps if step.what == what and not step.done]


def interrupted(catalog: Catalog, host: str, vm_uuid: str) -> list[Interrupted]:
    """The unfinished operations on a VM, oldest first."""
    with catalog.transaction() as connection:
        found = connection.execute(
            sa.select(operations_table.c.id, operations_table.c.verb, operations_table.c.started)
            .where(operations_table.c.host == host, operations_table.c.vm_uuid == vm_uuid)
            .where(operations_table.c.finished.is_(None))
            .order_by(operations_table.c.started)
        ).all()
        steps = {
            id: connection.execute(
                sa.select(steps_table.c.what, steps_table.c.details, steps_table.c.done)
                .where(steps_table.c.operation == id)
                .order_by(steps_table.c.number)
            ).all()
            for id, _, _ in found
        }
    return [
        Interrupted(id, verb, started, tuple(Step(what, json.loads(details), done) for what, details, done in steps[id]))
        for id, verb, started in found
    ]


def finish(catalog: Catalog, operation_id: str, outcome: str) -> None:
    """Closes an operation: nothing of it is left to mend."""
    with catalog.transaction() as connection:
        connection.execute(
            sa.update(operations_table)
            .where(operations_table.c.id == operation_id)
            .values(finished=datetime.now(UTC).isoformat(), outcome=outcome)
        )


class Journal:
    """One operation on one VM."""

    def __init__(self, catalog: Catalog, host: str, vm_uuid: str, verb: str) -> None:
        self._catalog = catalog
        self.id = uuid.uuid4().hex
        self._next = 0
        with catalog.transaction() as connection:
            connection.execute(
                sa.insert(operations_table).values(
                    id=self.id, host=host, vm_uuid=vm_uuid, verb=verb, started=datetime.now(UTC).isoformat()
                )
            )

    @contextmanager
    def step(self, what: str, **details: Any) -> Iterator[None]:
        """Written as intended before the block, as done after it; after an exception it stays intended."""
        number = self.intend(what, **details)
        yield
        self.done(number)

    def intend(self, what: str, **details: Any) -> int:
        number, self._next = self._next, self._next + 1
        with self._catalog.transaction() as connection:
            connection.execute(
                sa.insert(steps_table).values(
                    operation=self.id, number=number, what=what, details=json.dumps(details), done=False
                )
            )
        return number

    def done(self, number: int) -> None:
        with self._catalog.transaction() as connection:
            connection.execute(
                sa.update(steps_table)
                .where(steps_table.c.operation == self.id, steps_table.c.number == number)
                .values(done=True)
            )

    def finish(self, outcome: str) -> None:
        finish(self._catalog, self.id, outcome)
