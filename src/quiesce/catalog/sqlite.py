"""What SQLite needs to be told before it is as safe as a database server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event


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
        cursor.close()


def begin_immediate(connection: sa.Connection) -> None:
    """Begins a transaction that changes tables: Python's sqlite3 begins none before such a statement by itself, so that each
    would stay although a later one fails."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
