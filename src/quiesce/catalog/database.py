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

from quiesce.catalog import lock
from quiesce.catalog.schema import metadata
from quiesce.catalog.sqlite import begin_immediate, prepare_sqlite
from quiesce.codec import CodecError, decode, encode
from quiesce.model.errors import QuiesceError

REVISION = "0002"
"""The newest migration. Alembic is imported only if a catalog has another revision."""

_version = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))

T = TypeVar("T")


def default_url() -> str:
    """`$QUIESCE_CATALOG`; if it is not set, /var/lib/quiesce/catalog.db for root, and a file in the user's own state directory
    for others."""
    if url := os.environ.get("QUIESCE_CATALOG"):
        return url if "://" in url else f"sqlite:///{Path(url).absolute()}"
    if os.geteuid() == 0:
        directory = Path("/var/lib/quiesce")
    else:
        directory = Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "quiesce"
    return f"sqlite:///{directory}/catalog.db"


class Database:
    """One database. Raises QuiesceError if it cannot be opened, or if a newer quiesce wrote it."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or default_url()
        try:
            self._engine = sa.create_engine(self.url)
            if self._engine.dialect.name == "sqlite":
                prepare_sqlite(self._engine)
            with lock.wait(self.lock_directory(), "schema"):
                self._bring_up_to_date()
        except (sa.exc.SQLAlchemyError, OSError) as error:
            raise QuiesceError(
                f"cannot open the catalog {self.url}: {error}",
                hint="--catalog or $QUIESCE_CATALOG names another one; may you read and write this one?",
            ) from error

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Turns every error of the database into a QuiesceError, except IntegrityError, which passes through."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError:
            raise
        except sa.exc.SQLAlchemyError as error:
            raise QuiesceError(f"reading or writing the catalog {self.url} failed: {error}") from error

    def lock_directory(self) -> Path:
        """The directory of the lock files of this catalog's VMs: beside the file of an SQLite catalog."""
        database = self._engine.url.database
        if self._engine.dialect.name == "sqlite" and database:
            return Path(database).parent / "locks"
        return Path("/run/lock/quiesce")

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
                f"{self.url} has tables, but is not a catalog of this quiesce",
                hint="move it away; `quiesce catalog rebuild` makes a new catalog from the manifests beside the images",
            )
        if found != REVISION:
            from quiesce.catalog.migrations import migrate

            migrate(self._engine, self.url)


def to_column(value: Any) -> str:
    """A dataclass as the text of a column."""
    return json.dumps(encode(value))


def from_column(cls: type[T], text: str) -> T:
    """A dataclass from the text of a column. Raises QuiesceError if the text does not encode a `cls`."""
    try:
        return decode(cls, json.loads(text))
    except (CodecError, ValueError, RecursionError) as error:
        raise QuiesceError(
            f"the catalog has a {cls.__name__} that this quiesce cannot read: {error}",
            hint="was it written by a newer quiesce, or changed by hand? `quiesce catalog rebuild` makes a new one",
        ) from error
