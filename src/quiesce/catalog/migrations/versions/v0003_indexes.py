"""Indexes by which an operation finds its own records, however many others there are."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("host", sa.String, primary_key=True),
        sa.Column("path", sa.String, primary_key=True),
        sa.Column("checkpoint", sa.String, primary_key=True),
    )
    op.create_index("ix_files_checkpoint", "files", ["checkpoint"])
    op.add_column("checkpoints", sa.Column("group_name", sa.String, nullable=True))
    op.create_index("ix_checkpoints_group_name", "checkpoints", ["group_name"])
    op.create_index("ix_images_vm", "images", ["host", "vm_uuid"])
    op.create_index("ix_operations_unfinished", "operations", ["host", "finished", "vm_uuid"])
    op.create_index("ix_operations_vm", "operations", ["host", "vm_uuid"])
    _fill()


def _fill() -> None:
    checkpoints = sa.table("checkpoints", *map(sa.column, ("id", "host", "body", "group_name")))
    files = sa.table("files", *map(sa.column, ("host", "path", "checkpoint")))
    connection = op.get_bind()
    for id, host, body in connection.execute(sa.select(checkpoints.c.id, checkpoints.c.host, checkpoints.c.body)).all():
        try:
            record = json.loads(body)
            paths = {str(file["path"]) for field in ("disks", "files") for file in record.get(field) or ()}
            group = (record.get("group") or {}).get("group")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # a damaged record, which every operation on its VM refuses
        if paths:
            connection.execute(sa.insert(files), [{"host": host, "path": path, "checkpoint": id} for path in sorted(paths)])
        if isinstance(group, str):
            connection.execute(sa.update(checkpoints).where(checkpoints.c.id == id).values(group_name=group))
