"""The catalog: one database with the records of checkpoints, images, groups, settings, and operations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from quiesce.catalog import checkpoints, groups, schema
from quiesce.catalog.checkpoints import Checkpoints
from quiesce.catalog.database import Database
from quiesce.catalog.fingerprints import Fingerprints
from quiesce.catalog.groups import Groups
from quiesce.catalog.hosts import Hosts
from quiesce.catalog.images import Images
from quiesce.catalog.seal import Seal
from quiesce.catalog.settings import VmSettings
from quiesce.catalog.unusable import KEY
from quiesce.model.errors import NameTakenError
from quiesce.model.keys import VmKey


class Catalog:
    """One attribute for each kind of record. Raises QuiesceError if the database cannot be opened."""

    def __init__(self, url: str | None = None, database: Database | None = None) -> None:
        self.database = database or Database(url)
        self.hosts = Hosts(self.database)
        self.checkpoints = Checkpoints(self.database)
        self.images = Images(self.database)
        self.fingerprints = Fingerprints(self.database)
        self.groups = Groups(self.database)
        self.settings = VmSettings(self.database)
        self.seal = Seal(self.database.state_directory() / KEY, self.lock_directory())
        """Of the manifests."""

    def close(self) -> None:
        self.database.close()

    def lock_directory(self) -> Path:
        """The directory of the lock files of this catalog's VMs."""
        return self.database.lock_directory()

    def vms(self, host: str) -> list[VmKey]:
        """Every VM of the host that has a checkpoint, an image, or an unfinished operation in the catalog."""
        tables = schema.checkpoints, schema.images, schema.operations
        queries = [sa.select(table.c.vm_uuid).distinct().where(table.c.host == host) for table in tables]
        queries[-1] = queries[-1].where(schema.operations.c.finished.is_(None))
        with self.database.transaction() as connection:
            found = {uuid for query in queries for uuid in connection.scalars(query)}
        return [VmKey(host, uuid) for uuid in sorted(found)]

    def rehome(self, old: VmKey, new: VmKey) -> None:
        """Moves all records of the VM `old` to `new`, a VM of the same host. Raises NameTakenError if both have checkpoints of
        one name."""
        if old == new:
            return
        try:
            with self.database.transaction() as connection:
                for node in checkpoints.nodes_of(connection, old):
                    checkpoints.update(connection, replace(node, vm_uuid=new.uuid))
                for table in (schema.heads, schema.settings, schema.fingerprints):
                    connection.execute(sa.delete(table).where(table.c.host == new.host, table.c.vm_uuid == new.uuid))
                groups.rehome(connection, old, new)
                for table in (schema.heads, schema.images, schema.fingerprints, schema.settings, schema.operations):
                    same = table.c.host == old.host, table.c.vm_uuid == old.uuid
                    connection.execute(sa.update(table).where(*same).values(vm_uuid=new.uuid))
        except sa.exc.IntegrityError:
            raise NameTakenError(
                "both VMs have checkpoints, and some of one have names that the other has, too",
                hint="rename the checkpoints of the present VM: quiesce rename",
            ) from None
