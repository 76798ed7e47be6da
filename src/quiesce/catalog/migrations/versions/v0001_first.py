"""The first schema with migrations. A new catalog is made from catalog/schema.py and starts at the newest revision."""

from __future__ import annotations

revision = "0001"
down_revision = None


def upgrade() -> None:
    raise NotImplementedError("no catalog is older than this one")
