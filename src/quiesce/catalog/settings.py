"""The settings of each VM."""

from __future__ import annotations

from contextlib import suppress

import sqlalchemy as sa

from quiesce.catalog.database import Database, from_column, to_column
from quiesce.catalog.schema import settings
from quiesce.model.errors import QuiesceError
from quiesce.model.keys import VmKey
from quiesce.model.settings import Settings


class VmSettings:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: VmKey) -> Settings:
        """The VM's settings; the defaults if nobody set any."""
        query = sa.select(settings.c.body).where(settings.c.host == key.host, settings.c.vm_uuid == key.uuid)
        with self._database.transaction() as connection:
            body = connection.scalar(query)
        return from_column(Settings, body, f"VM {key.uuid}") if body else Settings()

    def of_host(self, host: str) -> dict[VmKey, Settings]:
        """Of the VMs of the host whose settings somebody changed; without those whose record cannot be read."""
        query = sa.select(settings.c.vm_uuid, settings.c.body).where(settings.c.host == host)
        with self._database.transaction() as connection:
            rows = connection.execute(query).all()
        found = {}
        for uuid, body in rows:
            with suppress(QuiesceError):  # every command on that VM says so
                found[VmKey(host, uuid)] = from_column(Settings, body, f"VM {uuid}")
        return found

    def put(self, key: VmKey, value: Settings) -> None:
        with self._database.transaction() as connection:
            connection.execute(sa.delete(settings).where(settings.c.host == key.host, settings.c.vm_uuid == key.uuid))
            connection.execute(sa.insert(settings).values(host=key.host, vm_uuid=key.uuid, body=to_column(value)))
