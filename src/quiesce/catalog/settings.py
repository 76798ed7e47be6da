"""The settings of each VM."""

from __future__ import annotations

import sqlalchemy as sa

from quiesce.catalog.database import Database, from_column, to_column
from quiesce.catalog.schema import settings
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

    def put(self, key: VmKey, value: Settings) -> None:
        with self._database.transaction() as connection:
            connection.execute(sa.delete(settings).where(settings.c.host == key.host, settings.c.vm_uuid == key.uuid))
            connection.execute(sa.insert(settings).values(host=key.host, vm_uuid=key.uuid, body=to_column(value)))
