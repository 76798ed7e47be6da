"""The hosts of the catalog. Each has an id that never changes."""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from quiesce.catalog import lock
from quiesce.catalog.database import Database
from quiesce.catalog.schema import hosts
from quiesce.model.keys import HostIdentity


class Hosts:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[HostIdentity, str] = {}

    def identify(self, identity: HostIdentity) -> str:
        """The id of this host. A new host gets a new id.

        The catalog recognizes a host by its UUID, so the host may get another name; and by its name if the UUID is new: a
        machine without a hardware UUID was installed anew, or the mainboard was replaced.
        """
        if identity not in self._known:
            with lock.wait(self._database.lock_directory(), "hosts"):  # otherwise two processes give a new host two ids
                self._known[identity] = self._identify(identity)
        return self._known[identity]

    def name(self, id: str) -> str:
        """The last name of the host that the catalog saw; `id` itself for an unknown host."""
        with self._database.transaction() as connection:
            return connection.scalar(sa.select(hosts.c.name).where(hosts.c.id == id)) or id

    def _identify(self, identity: HostIdentity) -> str:
        with self._database.transaction() as connection:
            for known in (sa.and_(hosts.c.uuid == identity.uuid, hosts.c.uuid != ""), hosts.c.name == identity.name):
                row = connection.execute(sa.select(hosts).where(known).order_by(hosts.c.id)).first()
                if row is not None:
                    if (row.uuid, row.name) != (identity.uuid, identity.name):
                        changed = sa.update(hosts).where(hosts.c.id == row.id)
                        connection.execute(changed.values(uuid=identity.uuid, name=identity.name))
                    return str(row.id)
            id = identity.uuid or uuid.uuid4().hex  # the UUID, so that a catalog made anew gives the host the same id
            if connection.scalar(sa.select(hosts.c.id).where(hosts.c.id == id)) is not None:
                id = uuid.uuid4().hex  # of a host that had this UUID before
            connection.execute(sa.insert(hosts).values(id=id, uuid=identity.uuid, name=identity.name))
            return id
