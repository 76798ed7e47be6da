"""The catalog: SQLite by default, any database of SQLAlchemy by URL."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from quiesce.catalog import lock
from quiesce.model.errors import NameTakenError, NotFoundError, QuiesceError
from quiesce.model.groups import Group
from quiesce.model.settings import Settings
from quiesce.model.tree import Checkpoint, GroupPart, Tree
from quiesce.wire.schema import from_wire, to_wire

SCHEMA_VERSION = 3
WORTH = ""
"""Among the images that are untouched since a restore: the consistency of their content, where that is no longer the one of the
checkpoint that the VM is based on."""

_metadata = sa.MetaData()

_heads = sa.Table(
    "heads",
    _metadata,
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("vm_uuid", sa.String, primary_key=True),
    sa.Column("parent", sa.String, nullable=True),
    sa.Column("untouched", sa.Text, nullable=True),
)
"""Where each VM stands. `untouched`: a JSON object of the head's images as a restore left them, and when they were last written
then."""
_checkpoints = sa.Table(
    "checkpoints",
    _metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("vm_uuid", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=True),
    sa.Column("group_checkpoint", sa.String, nullable=True, index=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("domain_xml", sa.Text, nullable=False),
    sa.UniqueConstraint("host", "vm_uuid", "name"),
)
"""A hidden checkpoint has no name here, so that another one can take it."""
_images = sa.Table(
    "images",
    _metadata,
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("vm_uuid", sa.String, nullable=False),
    sa.Column("merged", sa.Boolean, nullable=False, default=False),
    sa.Column("live", sa.Boolean, nullable=False, default=False),
)
"""Files we made, noted before they are: nothing else is ever removed. `merged`: it says the same as that below it."""
_groups = sa.Table(
    "groups",
    _metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)
_settings = sa.Table(
    "settings",
    _metadata,
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("vm_uuid", sa.String, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)
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


@dataclass(frozen=True)
class New:
    """A checkpoint to be recorded, and where the VM's disks now stand."""

    checkpoint: Checkpoint
    domain_xml: str
    head_parent: str | None
    untouched: dict[str, str] | None = None
    live: tuple[str, ...] = ()
    """What the VM writes from now on, and no more the checkpoint's own images."""


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
            nodes = _nodes(connection, host, vm_uuid)
            head = connection.scalar(sa.select(_heads.c.parent).where(_heads.c.host == host, _heads.c.vm_uuid == vm_uuid))
        return Tree.of(nodes, head)

    def untouched(self, host: str, vm_uuid: str) -> dict[str, str]:
        """The head's images as the last restore left them, and when each was last written then; empty if there was none."""
        query = sa.select(_heads.c.untouched).where(_heads.c.host == host, _heads.c.vm_uuid == vm_uuid)
        with self.transaction() as connection:
            return dict(json.loads(connection.scalar(query) or "{}"))

    def counts(self, host: str) -> dict[str, int]:
        """How many checkpoints each VM of the host has, by UUID."""
        with self.transaction() as connection:
            query = sa.select(_checkpoints.c.vm_uuid, sa.func.count(_checkpoints.c.name)).where(_checkpoints.c.host == host)
            rows = connection.execute(query.group_by(_checkpoints.c.vm_uuid)).all()
        return {uuid: count for uuid, count in rows}  # noqa: C416 - a row is no pair to dict()

    def domain_xml(self, checkpoint_id: str) -> str:
        with self.transaction() as connection:
            query = sa.select(_checkpoints.c.domain_xml).where(_checkpoints.c.id == checkpoint_id)
            return str(connection.execute(query).scalar_one())

    def add(
        self,
        checkpoint: Checkpoint,
        domain_xml: str,
        *,
        head_parent: str | None,
        untouched: dict[str, str] | None = None,
        live: Iterable[str] = (),
    ) -> None:
        """Records a checkpoint and where the VM's disks now stand. Raises NameTakenError."""
        self.add_together([New(checkpoint, domain_xml, head_parent, untouched, tuple(live))])

    def add_together(self, new: Sequence[New]) -> None:
        """The same for several at once: all of them or none. Raises NameTakenError."""
        try:
            with self.transaction() as connection:
                for item in new:
                    _insert(connection, item)
        except sa.exc.IntegrityError:
            for item in new:
                if self.tree(item.checkpoint.host, item.checkpoint.vm_uuid).has_name(item.checkpoint.name):
                    raise NameTakenError(
                        f"{item.checkpoint.vm_name} has a checkpoint named {item.checkpoint.name!r} already"
                    ) from None
            raise

    def has(self, checkpoint_id: str) -> bool:
        with self.transaction() as connection:
            return connection.scalar(sa.select(_checkpoints.c.id).where(_checkpoints.c.id == checkpoint_id)) is not None

    def update(self, *checkpoints: Checkpoint) -> None:
        """Records these checkpoints anew, all of them or none. Raises NameTakenError."""
        try:
            with self.transaction() as connection:
                for checkpoint in checkpoints:
                    _update(connection, checkpoint)
        except sa.exc.IntegrityError:
            raise NameTakenError("a checkpoint of that name is there already") from None

    def moved(self, host: str, vm_uuid: str, old: str, new: str) -> list[Checkpoint]:
        """Records that the content of the image `old` is in `new` now; `old` says the same while it is still there. Returns
        the checkpoints, hidden ones too, that had `old` and now have `new`."""
        with self.transaction() as connection:
            moved = [
                replace(node, disks=tuple(replace(disk, path=new) if disk.path == old else disk for disk in node.disks))
                for node in _nodes(connection, host, vm_uuid)
                if any(disk.path == old for disk in node.disks)
            ]
            for node in moved:
                _update(connection, node)
            connection.execute(sa.update(_images).where(_images.c.host == host, _images.c.path == old).values(merged=True))
        return moved

    def checkpoints_with(self, host: str, path: str) -> list[str]:
        """Names of the checkpoints that consist of this file, of whatever VM."""
        with self.transaction() as connection:
            bodies = connection.scalars(sa.select(_checkpoints.c.body).where(_checkpoints.c.host == host)).all()
        return [node.name for node in map(_node, bodies) if path in node.paths()]

    def note_image(self, host: str, vm_uuid: str, path: str) -> None:
        """To be said before an image is made."""
        with self.transaction() as connection:
            connection.execute(sa.insert(_images).values(host=host, path=path, vm_uuid=vm_uuid))

    def live_images(self, host: str, vm_uuid: str) -> set[str]:
        """Images that the VM has been made to write, and that have not been taken from it by us."""
        query = sa.select(_images.c.path).where(_images.c.host == host, _images.c.vm_uuid == vm_uuid, _images.c.live)
        with self.transaction() as connection:
            return set(connection.scalars(query).all())

    def set_live(self, host: str, paths: Iterable[str], live: bool) -> None:
        """Says of images of ours whether a VM writes them from now on."""
        with self.transaction() as connection:
            _set_live(connection, host, paths, live)

    def set_untouched(self, host: str, vm_uuid: str, untouched: dict[str, str]) -> None:
        with self.transaction() as connection:
            connection.execute(
                sa.update(_heads)
                .where(_heads.c.host == host, _heads.c.vm_uuid == vm_uuid)
                .values(untouched=json.dumps(untouched))
            )

    def merged_images(self, host: str, vm_uuid: str) -> set[str]:
        """Images that say the same as the owned image below them."""
        query = sa.select(_images.c.path).where(_images.c.host == host, _images.c.vm_uuid == vm_uuid, _images.c.merged)
        with self.transaction() as connection:
            return set(connection.scalars(query).all())

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

    def remove(self, checkpoint: Checkpoint) -> list[Checkpoint]:
        """Forgets a checkpoint; what stood on it, checkpoints and the VM itself, stands on its parent now. Returns those
        checkpoints."""
        with self.transaction() as connection:
            connection.execute(sa.delete(_checkpoints).where(_checkpoints.c.id == checkpoint.id))
            nodes = _nodes(connection, checkpoint.host, checkpoint.vm_uuid)
            children = [replace(node, parent=checkpoint.parent) for node in nodes if node.parent == checkpoint.id]
            for node in children:
                _update(connection, node)
            connection.execute(
                sa.update(_heads)
                .where(_heads.c.host == checkpoint.host, _heads.c.vm_uuid == checkpoint.vm_uuid)
                .where(_heads.c.parent == checkpoint.id)
                .values(parent=checkpoint.parent)
            )
        return children

    def set_head(self, host: str, vm_uuid: str, parent: str | None, untouched: dict[str, str] | None = None) -> None:
        with self.transaction() as connection:
            _set_head(connection, host, vm_uuid, parent, untouched)

    def settings(self, host: str, vm_uuid: str) -> Settings:
        query = sa.select(_settings.c.body).where(_settings.c.host == host, _settings.c.vm_uuid == vm_uuid)
        with self.transaction() as connection:
            body = connection.scalar(query)
        return from_wire(Settings, json.loads(body), own=True) if body else Settings()

    def set_settings(self, host: str, vm_uuid: str, settings: Settings) -> None:
        with self.transaction() as connection:
            connection.execute(sa.delete(_settings).where(_settings.c.host == host, _settings.c.vm_uuid == vm_uuid))
            connection.execute(sa.insert(_settings).values(host=host, vm_uuid=vm_uuid, body=json.dumps(to_wire(settings))))

    def parts(self, group_checkpoint: str) -> list[Checkpoint]:
        """All parts of a group's checkpoint that are still there, in the group's order; hidden ones are not."""
        with self.transaction() as connection:
            bodies = connection.scalars(
                sa.select(_checkpoints.c.body).where(_checkpoints.c.group_checkpoint == group_checkpoint)
            ).all()
        found = [node for node in map(_node, bodies) if not node.hidden and node.group]
        return sorted(found, key=lambda node: node.group.members.index(node.id) if node.group else 0)

    def group_checkpoints(self, group: str) -> list[GroupPart]:
        """Those of the group that have any part left, each by one of its parts, oldest first."""
        with self.transaction() as connection:
            query = sa.select(_checkpoints.c.body).where(_checkpoints.c.group_checkpoint.is_not(None))
            bodies = connection.scalars(query).all()
        nodes = sorted(map(_node, bodies), key=lambda node: node.created)
        parts = [node.group for node in nodes if node.group and node.group.group == group and not node.hidden]
        return list({part.id: part for part in parts}.values())

    def group(self, name: str) -> Group:
        """Raises NotFoundError."""
        with self.transaction() as connection:
            body = connection.scalar(sa.select(_groups.c.body).where(_groups.c.name == name))
        if body is None:
            raise NotFoundError(f"no group named {name!r}", hint="`quiesce group list` shows those there are")
        return from_wire(Group, json.loads(body), own=True)

    def groups(self) -> list[Group]:
        with self.transaction() as connection:
            bodies = connection.scalars(sa.select(_groups.c.body).order_by(_groups.c.name)).all()
        return [from_wire(Group, json.loads(body), own=True) for body in bodies]

    def set_group(self, group: Group, *, new: bool = False) -> None:
        """Raises NameTakenError if it is to be a new one and there is one of that name."""
        try:
            with self.transaction() as connection:
                if not new:
                    connection.execute(sa.delete(_groups).where(_groups.c.name == group.name))
                connection.execute(sa.insert(_groups).values(name=group.name, body=json.dumps(to_wire(group))))
        except sa.exc.IntegrityError:
            raise NameTakenError(f"there is a group named {group.name!r} already") from None

    def remove_group(self, name: str) -> None:
        with self.transaction() as connection:
            connection.execute(sa.delete(_groups).where(_groups.c.name == name))

    def vm_uuids(self, host: str) -> list[str]:
        """Every VM of the host that anything is recorded of."""
        with self.transaction() as connection:
            found = set(connection.scalars(sa.select(_checkpoints.c.vm_uuid).where(_checkpoints.c.host == host)))
            found |= set(connection.scalars(sa.select(_images.c.vm_uuid).where(_images.c.host == host)))
            unfinished = sa.select(operations_table.c.vm_uuid).where(operations_table.c.finished.is_(None))
            found |= set(connection.scalars(unfinished.where(operations_table.c.host == host)))
        return sorted(found)

    def rehome(self, host: str, old: str, new: str) -> None:
        """Everything recorded of the VM with the UUID `old` belongs to `new` now. Raises NameTakenError if `new` has
        checkpoints of the same names."""
        if old == new:
            return
        try:
            with self.transaction() as connection:
                for node in _nodes(connection, host, old):
                    _update(connection, replace(node, vm_uuid=new))
                for table in (_heads, _settings):
                    connection.execute(sa.delete(table).where(table.c.host == host, table.c.vm_uuid == new))
                for (body,) in connection.execute(sa.select(_groups.c.body)).all():
                    group = from_wire(Group, json.loads(body), own=True).rehomed(host, old, new)
                    changed = sa.update(_groups).where(_groups.c.name == group.name).values(body=json.dumps(to_wire(group)))
                    connection.execute(changed)
                for table in (_heads, _images, _settings, operations_table):
                    connection.execute(sa.update(table).where(table.c.host == host, table.c.vm_uuid == old).values(vm_uuid=new))
        except sa.exc.IntegrityError:
            raise NameTakenError("both VMs have checkpoints, and some are named the same") from None


def _insert(connection: sa.Connection, new: New) -> None:
    checkpoint = new.checkpoint
    connection.execute(
        sa.insert(_checkpoints).values(
            id=checkpoint.id,
            host=checkpoint.host,
            vm_uuid=checkpoint.vm_uuid,
            name=_column(checkpoint),
            group_checkpoint=checkpoint.group.id if checkpoint.group else None,
            body=json.dumps(to_wire(checkpoint)),
            domain_xml=new.domain_xml,
        )
    )
    _set_head(connection, checkpoint.host, checkpoint.vm_uuid, new.head_parent, new.untouched)
    _set_live(connection, checkpoint.host, [disk.path for disk in checkpoint.disks], False)
    _set_live(connection, checkpoint.host, new.live, True)


def _nodes(connection: sa.Connection, host: str, vm_uuid: str) -> list[Checkpoint]:
    query = sa.select(_checkpoints.c.body).where(_checkpoints.c.host == host, _checkpoints.c.vm_uuid == vm_uuid)
    return [_node(body) for body in connection.scalars(query.order_by(_checkpoints.c.id)).all()]


def _node(body: str) -> Checkpoint:
    return from_wire(Checkpoint, json.loads(body), own=True)


def _column(checkpoint: Checkpoint) -> str | None:
    return None if checkpoint.hidden else checkpoint.name


def _update(connection: sa.Connection, checkpoint: Checkpoint) -> None:
    connection.execute(
        sa.update(_checkpoints)
        .where(_checkpoints.c.id == checkpoint.id)
        .values(vm_uuid=checkpoint.vm_uuid, name=_column(checkpoint), body=json.dumps(to_wire(checkpoint)))
    )


def _set_live(connection: sa.Connection, host: str, paths: Iterable[str], live: bool) -> None:
    connection.execute(sa.update(_images).where(_images.c.host == host, _images.c.path.in_(list(paths))).values(live=live))


def _set_head(
    connection: sa.Connection, host: str, vm_uuid: str, parent: str | None, untouched: dict[str, str] | None = None
) -> None:
    connection.execute(sa.delete(_heads).where(_heads.c.host == host, _heads.c.vm_uuid == vm_uuid))
    connection.execute(
        sa.insert(_heads).values(
            host=host, vm_uuid=vm_uuid, parent=parent, untouched=json.dumps(untouched) if untouched else None
        )
    )


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
