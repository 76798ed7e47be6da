"""What is being done: a row precedes every step that changes disks, so that nothing a killed process left is a riddle."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from quiesce.catalog.store import Catalog, operations_table, steps_table


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
        """Closes the operation: nothing of it is left to mend."""
        with self._catalog.transaction() as connection:
            connection.execute(
                sa.update(operations_table)
                .where(operations_table.c.id == self.id)
                .values(finished=datetime.now(UTC).isoformat(), outcome=outcome)
            )
