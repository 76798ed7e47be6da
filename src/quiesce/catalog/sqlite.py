"""What SQLite needs to be told before it is as safe as a database server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from quiesce.model.errors import NoSpaceError

RESERVE = 1024 * 1024
"""Bytes that the journal of an operation finds in the catalog's files although their disk gets full meanwhile. An operation
needs a tenth of that, but for a deletion of dozens of checkpoints."""
LEAST = 64 * 1024
"""With less free space, in bytes, SQLite cannot even open a database for reading: it maps an index of its log into memory."""


def prepare_sqlite(engine: sa.Engine) -> None:
    """Makes the directory of the database; has every connection write ahead, flush at each commit, and wait for other
    writers."""
    if engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA busy_timeout = 10000")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA wal_autocheckpoint = {RESERVE // 4096 // 2}")  # so that the log does not outgrow the reserve
        cursor.close()


def begin_immediate(connection: sa.Connection) -> None:
    """Begins a transaction that changes tables: Python's sqlite3 begins none before such a statement by itself, so that each
    would stay although a later one fails."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def reuse_log(engine: sa.Engine) -> None:
    """Has the next writers fill the write-ahead log from its beginning, without letting it grow."""
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(RESTART)")


def is_full(error: BaseException, file: Path) -> bool:
    """Whether this error of SQLite, on this database, comes from a full disk. SQLite says so of its writes only, and not of the
    file that it maps into memory."""
    if "disk is full" in str(error):
        return True
    try:
        found = os.statvfs(file.parent)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < LEAST


def no_room(file: Path) -> NoSpaceError:
    try:
        found = os.statvfs(file.parent)
        free = found.f_bavail * found.f_frsize
    except OSError:
        free = 0
    needed = 4 * RESERVE
    return NoSpaceError(
        f"{file.parent}, which has the catalog, is full: {free} bytes are free, and an operation may need {needed}",
        hint="free space there, or move the catalog (--catalog, $QUIESCE_CATALOG)",
        details={"directory": str(file.parent), "free": free, "needed": needed, "missing": max(0, needed - free)},
    )
