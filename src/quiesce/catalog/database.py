"""The database of the catalog: SQLite by default, or any database that SQLAlchemy knows, by URL. Opens it, migrates it, and
gives transactions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from quiesce.catalog import lock, unusable
from quiesce.catalog.schema import metadata
from quiesce.catalog.secret_url import SecretUrl
from quiesce.catalog.sqlite import begin_immediate, is_full, no_room, prepare_sqlite, reuse_log
from quiesce.codec import CodecError, decode, encode
from quiesce.model.errors import QuiesceError
from quiesce.model.soundness import require_sound
from quiesce.model.tree import Checkpoint

REVISION = "0003"
"""The newest migration. Alembic is imported only if a catalog has another revision."""

_version = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))

T = TypeVar("T")


def default_url() -> str:
    """`$QUIESCE_CATALOG`; if it is not set, /var/lib/quiesce/catalog.db for root, and a file in the user's own state directory
    for others."""
    if url := os.environ.get("QUIESCE_CATALOG"):
        return url if "://" in url else f"sqlite:///{Path(url).absolute()}"
    return f"sqlite:///{_state_directory()}/catalog.db"


def _state_directory() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/quiesce")
    return Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "quiesce"


class Database:
    """One database. Raises QuiesceError if it cannot be opened, or if a newer quiesce wrote it. No error has a password of the
    URL."""

    def __init__(self, url: str | None = None) -> None:
        self._url = SecretUrl(url or default_url())
        self.file: Path | None = None
        """The file of an SQLite catalog."""
        try:
            self._engine = sa.create_engine(self._url.whole, hide_parameters=True)  # a journal's reserve has a megabyte
            if self._engine.dialect.name == "sqlite":
                if database := self._engine.url.database:
                    self.file = Path(database)
                    unusable.require_usable(self.file)
                prepare_sqlite(self._engine)
            with lock.wait(self.lock_directory(), "schema"):
                self._bring_up_to_date()
        # A driver that is not installed is an ImportError; a port that is no number a ValueError.
        except (sa.exc.SQLAlchemyError, OSError, ImportError, ValueError, TypeError) as error:
            if (file := self.file) and is_full(error, file):
                raise no_room(file) from error
            if (file := self.file) and unusable.is_damaged(error, file):
                raise unusable.damaged_catalog(file, str(getattr(error, "orig", error))) from None
            raise QuiesceError(
                f"cannot open the catalog {self._url}: {self._url.without_secrets(error)}",
                hint="--catalog or $QUIESCE_CATALOG names another one; may you read and write this one?",
            ) from None

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Turns every error of the database into a QuiesceError, except IntegrityError, which passes through: NoSpaceError if
        its disk is full."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError:
            raise
        except sa.exc.SQLAlchemyError as error:
            if (file := self.file) and is_full(error, file):
                raise no_room(file) from error
            if (file := self.file) and unusable.is_damaged(error, file):
                raise unusable.damaged_catalog(file, str(getattr(error, "orig", error))) from None
            said = self._url.without_secrets(error)
            raise QuiesceError(f"reading or writing the catalog {self._url} failed: {said}") from None

    def lock_directory(self) -> Path:
        """The directory of the lock files of this catalog's VMs: beside the file of an SQLite catalog."""
        return self.file.parent / "locks" if self.file else lock.directory_for_this_user()

    def state_directory(self) -> Path:
        """Where the catalog's key lies: beside the file of an SQLite catalog."""
        return self.file.parent if self.file else _state_directory()

    def reuse_log(self) -> None:
        """Lets the rows that are written next take the room of rows that were removed."""
        if self.file:
            reuse_log(self._engine)

    def _bring_up_to_date(self) -> None:
        with self._engine.begin() as connection:
            tables = set(sa.inspect(connection).get_table_names())
            if not tables:
                begin_immediate(connection)
                metadata.create_all(connection)
                _version.create(connection)
                connection.execute(sa.insert(_version).values(version_num=REVISION))
                return
            found = connection.scalar(sa.select(_version.c.version_num)) if _version.name in tables else None
        if found is None:
            raise QuiesceError(
                f"{self._url} has tables, but is not a catalog of this quiesce",
                hint="move it away; `quiesce catalog rebuild` makes a new catalog from the manifests beside the images",
            )
        if found != REVISION:
            from quiesce.catalog.migrations import migrate

            migrate(self._engine, str(self._url))


def to_column(value: Any) -> str:
    """A dataclass as the text of a column."""
    return json.dumps(encode(value))


def from_column(cls: type[T], text: str, what: str) -> T:
    """A dataclass from the text of a column. `what` names the row. Raises QuiesceError if the text does not encode a `cls`, or
    encodes a checkpoint that cannot be one."""
    try:
        value = decode(cls, json.loads(text))
        if isinstance(value, Checkpoint):
            require_sound(value)
    except (CodecError, ValueError, RecursionError) as error:
        raise QuiesceError(
            f"the catalog's record of {what} has a {cls.__name__} that this quiesce cannot read: {error}",
            hint="was it written by a newer quiesce, or changed by hand? If you move the catalog away, but not its key"
            " (seal.key), `quiesce catalog rebuild` makes a new one from the manifests",
        ) from error
    return value
