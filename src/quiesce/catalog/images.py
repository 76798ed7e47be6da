"""The files that quiesce made."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from quiesce.catalog.database import Database
from quiesce.catalog.schema import images
from quiesce.model.keys import VmKey


class Images:
    """Files, each under the id of its host and its path."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, key: VmKey, path: str) -> None:
        """Call this before you make a file: if the process is killed in between, the catalog knows that the file is ours."""
        with self._database.transaction() as connection:
            connection.execute(sa.insert(images).values(host=key.host, path=path, vm_uuid=key.uuid))

    def forget(self, host: str, path: str) -> None:
        """Call this after you removed a file."""
        with self._database.transaction() as connection:
            connection.execute(sa.delete(images).where(images.c.host == host, images.c.path == path))

    def has(self, host: str, path: str) -> bool:
        """Whether quiesce made this file, for any VM."""
        query = sa.select(images.c.path).where(images.c.host == host, images.c.path == path)
        with self._database.transaction() as connection:
            return connection.scalar(query) is not None

    def made_for(self, key: VmKey) -> list[str]:
        query = sa.select(images.c.path).where(images.c.host == key.host, images.c.vm_uuid == key.uuid)
        with self._database.transaction() as connection:
            return list(connection.scalars(query.order_by(images.c.path)).all())

    def merged(self, key: VmKey) -> set[str]:
        """Images that were committed into their backing file, so that both have the same content."""
        query = sa.select(images.c.path).where(images.c.host == key.host, images.c.vm_uuid == key.uuid, images.c.merged)
        with self._database.transaction() as connection:
            return set(connection.scalars(query).all())

    def live(self, key: VmKey) -> set[str]:
        """Images that quiesce gave the VM to write and has not taken away since."""
        query = sa.select(images.c.path).where(images.c.host == key.host, images.c.vm_uuid == key.uuid, images.c.live)
        with self._database.transaction() as connection:
            return set(connection.scalars(query).all())

    def merged_by_vm(self, host: str, top: str, base: str) -> None:
        """Records that `top`, which a VM wrote, was committed into `base`, which the VM writes from now on."""
        with self._database.transaction() as connection:
            set_live(connection, host, [base], True)
            same = images.c.host == host, images.c.path == top
            connection.execute(sa.update(images).where(*same).values(merged=True, live=False))

    def set_live(self, host: str, paths: Iterable[str], live: bool) -> None:
        """Records whether a VM writes these images from now on. Paths that quiesce did not make are ignored."""
        with self._database.transaction() as connection:
            set_live(connection, host, paths, live)


def set_live(connection: sa.Connection, host: str, paths: Iterable[str], live: bool) -> None:
    connection.execute(sa.update(images).where(images.c.host == host, images.c.path.in_(list(paths))).values(live=live))
