"""The fingerprints of the images that checkpoints consist of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from quiesce.catalog.database import Database, from_column, to_column
from quiesce.catalog.schema import fingerprints
from quiesce.model.fingerprints import Fingerprint
from quiesce.model.keys import VmKey


class Fingerprints:
    """Fingerprints by VM and path. An image may have several, one for each VM whose checkpoints read it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, key: VmKey) -> dict[str, Fingerprint]:
        """By path. May have images that no checkpoint reads any more."""
        query = sa.select(fingerprints.c.path, fingerprints.c.body).where(*_of(key)).order_by(fingerprints.c.path)
        with self._database.transaction() as connection:
            return {
                path: from_column(Fingerprint, body, f"image {path} of VM {key.uuid}")
                for path, body in connection.execute(query)
            }

    def put(self, key: VmKey, new: Mapping[str, Fingerprint]) -> None:
        """Adds or replaces these fingerprints, all of them or none."""
        with self._database.transaction() as connection:
            put(connection, key, new)

    def forget(self, key: VmKey, paths: Iterable[str]) -> None:
        with self._database.transaction() as connection:
            connection.execute(sa.delete(fingerprints).where(*_of(key), fingerprints.c.path.in_(list(paths))))


def put(connection: sa.Connection, key: VmKey, new: Mapping[str, Fingerprint]) -> None:
    connection.execute(sa.delete(fingerprints).where(*_of(key), fingerprints.c.path.in_(list(new))))
    rows = [
        {"host": key.host, "vm_uuid": key.uuid, "path": path, "body": to_column(fingerprint)}
        for path, fingerprint in sorted(new.items())
    ]
    if rows:
        connection.execute(sa.insert(fingerprints), rows)


def _of(key: VmKey) -> tuple[sa.ColumnElement[bool], ...]:
    return fingerprints.c.host == key.host, fingerprints.c.vm_uuid == key.uuid
