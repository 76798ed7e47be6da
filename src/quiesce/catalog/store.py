"""The catalog: SQLite by default, any database of SQLAlchemy by URL."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from quiesce.catalog import lock
from quiesce.model.errors import NameTakenError, QuiesceError
from quiesce.model.tree import Checkpoint, Tree
from quiesce.wire.schema import from_wire, to_wire

SCHEMA_VERSION = 1

_metadata = sa.MetaData()

_heads = sa.Table(
    "heads",
    _metadata,
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("vm_uuid", sa.String, primary_key=True),
    sa.Column("parent", sa.String, nullable=True),
)
_checkpoints = sa.Table(
    "checkpoints",
    _metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("vm_uuid", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("domain_xml", sa.Text, nullable=False),
    sa.Column("deleting", sa.Boolean, nullable=False, default=False),
    sa.UniqueConstraint("host", "vm_uuid", "name"),
)
_images = sa.Table(
    "images",
    _metadata,
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("vm_uuid", sa.String, nullable=False),
)
"""Images we made, noted before they are: nothing else is ever removed."""
operations_table = sa.Table(
    "operations",
    _metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("vm_uuid", sa.String, nullable=False),
    sa.Column("verb", sa.String, nullable=False),
    sa.Column("started", sa.String, nullable=False),
    sa.Column("finished", sa.String, nullable=True),
    sa.Column("outcome", sa.String, nullable=True),
)
steps_table = sa.Table(
    "steps",
    _metadata,
    sa.Column("operation", sa.String, sa.ForeignKey("operations.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("what", sa.String, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("done", sa.Boolean, nullable=False, default=False),
)
_schema = sa.Table("schema_version", _metadata, sa.Column("version", sa.Integer, nullable=False))


def default_url() -> str:
    """`$QUIESCE_CATALOG`, else a file in the system's state directory for root and the user's own for others."""
    if url := os.environ.get("QUIESCE_CATALOG"):
        return url if "://" in url else f"sqlite:///{Path(url).absolute()}"
    if os.geteuid() == 0:
        directory = Path("/var/lib/quiesce")
    else:
        directory = Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "quiesce"
    return f"sqlite:///{directory}/catalog.db"


class Catalog:
    """All methods block; each is one transaction."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or default_url()
        try:
            self._engine = sa.create_engine(self.url)
            if self._engine.dialect.name == "sqlite":
                _prepare_sqlite(self._engine)
            with lock.wait(self.lock_directory(), "schema"), self._engine.begin() as connection:
                _metadata.create_all(connection)
                version = connection.scalar(sa.select(_schema.c.version))
                if version is None:
                    connection.execute(sa.insert(_schema).values(version=SCHEMA_VERSION))
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise QuiesceError(f"cannot open the catalog {self.url}: {error}") from error
        if version not in (None, SCHEMA_VERSION):
            raise QuiesceError(f"the catalog {self.url} has schema {version}; this quiesce knows {SCHEMA_VERSION}")

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Raises QuiesceError for what the database says, but IntegrityError as it is."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError:
            raise
        except sa.exc.SQLAlchemyError as error:
            raise QuiesceError(f"the catalog {self.url}: {error}") from error

    def lock_directory(self) -> Path:
        """Where operations on VMs of this catalog lock each other out: beside its file."""
        database = self._engine.url.database
        if self._engine.dialect.name == "sqlite" and database:
            return Path(database).parent / "locks"
        return Path("/run/lock/quiesce")

    def tree(self, host: str, vm_uuid: str) -> Tree:
        with self.transaction() as connection:
            query = sa.select(_checkpoints.c.body, _checkpoints.c.deleting)
            query = query.where(_checkpoints.c.host == host, _checkpoints.c.vm_uuid == vm_uuid)
            found = [
                (from_wire(Checkpoint, json.loads(body), own=True), deleting) for body, deleting in connection.execute(query)
            ]
            head = connection.scalar(sa.select(_heads.c.parent).where(_heads.c.host == host, _heads.c.vm_uuid == vm_uuid))
        return Tree.of((node for node, _ in found), head, (node.id for node, deleting in found if deleting))

    def counts(self, host: str) -> dict[str, int]:
        """How many checkpoints each VM of the host has, by UUID."""
        with self.transaction() as connection:
            query = sa.select(_checkpoints.c.vm_uuid, sa.func.count()).where(_checkpoints.c.host == host)
            rows = connection.execute(query.group_by(_checkpoints.c.vm_uuid)).all()
        return {uuid: count for uuid, count in rows}  # noqa: C416 - a row is no pair to dict()

    def domain_xml(self, checkpoint_id: str) -> str:
        with self.transaction() as connection:
            query = sa.select(_checkpoints.c.domain_xml).where(_checkpoints.c.id == checkpoint_id)
            return str(connection.execute(query).scalar_one())

    def add(self, checkpoint: Checkpoint, domain_xml: str, *, head_parent: str | None) -> None:
        """Records a checkpoint and where the VM's disks now stand. Raises NameTakenError."""
        try:
            with self.transaction() as connection:
                connection.execute(
                    sa.insert(_checkpoints).values(
                        id=checkpoint.id,
                        host=checkpoint.host,
                        vm_uuid=checkpoint.vm_uuid,
                        name=checkpoint.name,
                        body=json.dumps(to_wire(checkpoint)),
                        domain_xml=domain_xml,
                    )
                )
                _set_head(connection, checkpoint.host, checkpoint.vm_uuid, head_parent)
        except sa.exc.IntegrityError:
            raise NameTakenError(f"{checkpoint.vm_name} has a checkpoint named {checkpoint.name!r} already") from None

    def has(self, checkpoint_id: str) -> bool:
        with self.transaction() as connection:
            return connection.scalar(sa.select(_checkpoints.c.id).where(_checkpoints.c.id == checkpoint_id)) is not None

    def mark_deleting(self, checkpoint: Checkpoint) -> None:
        """From now on its images may change; it can only be deleted."""
        with self.transaction() as connection:
            connection.execute(sa.update(_checkpoints).where(_checkpoints.c.id == checkpoint.id).values(deleting=True))

    def checkpoints_with(self, host: str, path: str) -> list[str]:
        """Names of the checkpoints that consist of this image, of whatever VM."""
        with self.transaction() as connection:
            bodies = connection.scalars(sa.select(_checkpoints.c.body).where(_checkpoints.c.host == host)).all()
        nodes = [from_wire(Checkpoint, json.loads(body), own=True) for body in bodies]
        return [node.name for node in nodes if any(image.path == path for image in node.disks)]

    def note_image(self, host: str, vm_uuid: str, path: str) -> None:
        """To be said before an image is made."""
        with self.transaction() as connection:
            connection.execute(sa.insert(_images).values(host=host, path=path, vm_uuid=vm_uuid))

    def images_made_for(self, host: str, vm_uuid: str) -> list[str]:
        query = sa.select(_images.c.path).where(_images.c.host == host, _images.c.vm_uuid == vm_uuid)
        with self.transaction() as connection:
            return list(connection.scalars(query.order_by(_images.c.path)).all())

    def made_image(self, host: str, path: str) -> bool:
        query = sa.select(_images.c.path).where(_images.c.host == host, _images.c.path == path)
        with self.transaction() as connection:
            return connection.scalar(query) is not None

    def forget_image(self, host: str, path: str) -> None:
        """To be said after an image was removed."""
        with self.transaction() as connection:
            connection.execute(sa.delete(_images).where(_images.c.host == host, _images.c.path == path))

    def remove(self, checkpoint: Checkpoint, *, head_parent: str | None) -> None:
        with self.transaction() as connection:
            connection.execute(sa.delete(_checkpoints).where(_checkpoints.c.id == checkpoint.id))
            _set_head(connection, checkpoint.host, checkpoint.vm_uuid, head_parent)

    def set_head(self, host: str, vm_uuid: str, parent: str | None) -> None:
        with self.transaction() as connection:
            _set_head(connection, host, vm_uuid, parent)


def _set_head(connection: sa.Connection, host: str, vm_uuid: str, parent: str | None) -> None:
    connection.execute(sa.delete(_heads).where(_heads.c.host == host, _heads.c.vm_uuid == vm_uuid))
    connection.execute(sa.insert(_heads).values(host=host, vm_uuid=vm_uuid, parent=parent))


def _prepare_sqlite(engine: sa.Engine) -> None:
    if engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA busy_timeout = 10000")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()
