"""The files that quiesce made."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from quiesce.catalog.database import Database
from quiesce.catalog.schema import images
from quiesce.model.keys import VmKey


class Images:
    """Files by the id of their host and their path."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, key: VmKey, path: str) -> None:
        """To be called before a file is made: after a kill in between, the file is known to be ours."""
        with self._database.transaction() as connection:
            connection.execute(sa.insert(images).values(host=key.host, path=path, vm_uuid=key.uuid))

    def forget(self, host: str, path: str) -> None:
        """To be called after a file was removed."""
        with self._database.transaction() as connection:
            connection.execute(sa.delete(images).where(images.c.host == host, images.c.path == path))

    def has(self, host: str, path: str) -> bool:
        """Whether quiesce made this file, for whichever VM."""
        query = sa.select(images.c.path).where(images.c.host == host, images.c.path == path)
        with self._database.transaction() as connection:
            return connection.scalar(query) is not None

    def made_for(self, key: VmKey) -> list[str]:
        query = sa.select(images.c.path).where(images.c.host == key.host, images.c.vm_uuid == key.uuid)
        with self._database.transaction() as connection:
            return list(connection.scalars(query.order_by(images.c.path)).all())

    def merged(self, key: VmKey) -> set[str]:
        """Images whose content was committed into the backing file: both have the same content."""
        query = sa.select(images.c.path).where(images.c.host == key.host, images.c.vm_uuid == key.uuid, images.c.merged)
        with self._database.transaction() as connection:
            return set(connection.scalars(query).all())

    def live(self, key: VmKey) -> set[str]:
        """Images that quiesce made the VM write, and has not taken from the VM since."""
        query = sa.select(images.c.path).where(images.c.host == key.host, images.c.vm_uuid == key.uuid, images.c.live)
        with self._database.transaction() as connection:
            return set(connection.scalars(query).all())

    def set_live(self, host: str, paths: Iterable[str], live: bool) -> None:
        """Records of images of ours whether a VM writes them from now on."""
        with self._database.transaction() as connection:
            set_live(connection, host, paths, live)


def set_live(connection: sa.Connection, host: str, paths: Iterable[str], live: bool) -> None:
    connection.execute(sa.update(images).where(images.c.host == host, images.c.path.in_(list(paths))).values(live=live))
