"""Migrates a catalog that an older quiesce wrote to the present schema, with Alembic.

Each migration is a numbered file in versions/; catalog/database.py names the newest. tests/unit/test_migrations.py opens a
catalog of each earlier version."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from quiesce.catalog.sqlite import begin_immediate
from quiesce.model.errors import QuiesceError


def configuration() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


def migrate(engine: sa.Engine, url: str) -> None:
    """Runs all missing migrations in one transaction, if the database has transactional DDL. Raises QuiesceError for a revision
    that this quiesce does not know."""
    config = configuration()
    try:
        with engine.begin() as connection:
            begin_immediate(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise QuiesceError(f"a newer quiesce wrote the catalog {url}: {error}", hint="upgrade this quiesce") from error
