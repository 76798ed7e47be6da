"""The fingerprints of the images of checkpoints. Images of earlier checkpoints have none until the VM's next checkpoint."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "fingerprints",
        sa.Column("host", sa.String, primary_key=True),
        sa.Column("vm_uuid", sa.String, primary_key=True),
        sa.Column("path", sa.String, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )
