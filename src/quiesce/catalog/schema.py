"""The tables of the catalog. Changing one needs a migration (catalog/migrations)."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("uuid", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
)
"""The hosts that quiesce has seen. `id` never changes; `uuid` and `name` are what libvirt reported last."""

heads = sa.Table(
    "heads",
    metadata,
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("vm_uuid", sa.String, primary_key=True),
    sa.Column("parent", sa.String, nullable=True),
    sa.Column("untouched", sa.Text, nullable=True),
)
"""The checkpoint that each VM is based on. `untouched`: a model.standing.Untouched."""

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("vm_uuid", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=True),
    sa.Column("group_checkpoint", sa.String, nullable=True, index=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("domain_xml", sa.Text, nullable=False),
    sa.Column("group_name", sa.String, nullable=True, index=True),
    sa.UniqueConstraint("host", "vm_uuid", "name"),
)
"""`body`: a model.tree.Checkpoint. A hidden checkpoint has no name here, so that another checkpoint can take the name."""

files = sa.Table(
    "files",
    metadata,
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("checkpoint", sa.String, primary_key=True, index=True),
)
"""Every file that a checkpoint consists of, as its body lists them, so that the checkpoints of a file are found by index."""

images = sa.Table(
    "images",
    metadata,
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("vm_uuid", sa.String, nullable=False),
    sa.Column("merged", sa.Boolean, nullable=False, default=False),
    sa.Column("live", sa.Boolean, nullable=False, default=False),
    sa.Index("ix_images_vm", "host", "vm_uuid"),
)
"""Files that quiesce made; quiesce removes no other file. A row is written before its file is made. `merged`: the image was
committed into its backing file. `live`: a VM writes the image, or wrote it when the disk was detached from the VM."""

fingerprints = sa.Table(
    "fingerprints",
    metadata,
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("vm_uuid", sa.String, primary_key=True),
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)
"""How the images that a VM's checkpoints read were left, by path. `body`: a model.fingerprints.Fingerprint. An image that the
VM writes has none."""

groups = sa.Table(
    "groups",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)

settings = sa.Table(
    "settings",
    metadata,
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("vm_uuid", sa.String, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)

operations = sa.Table(
    "operations",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("vm_uuid", sa.String, nullable=False),
    sa.Column("verb", sa.String, nullable=False),
    sa.Column("started", sa.String, nullable=False),
    sa.Column("finished", sa.String, nullable=True),
    sa.Column("outcome", sa.String, nullable=True),
    sa.Index("ix_operations_unfinished", "host", "finished", "vm_uuid"),
    sa.Index("ix_operations_vm", "host", "vm_uuid"),
)
"""Operations, unfinished (`finished` is NULL) and finished: see catalog/journal.py."""

steps = sa.Table(
    "steps",
    metadata,
    sa.Column("operation", sa.String, sa.ForeignKey("operations.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("what", sa.String, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("done", sa.Boolean, nullable=False, default=False),
)
"""`details`: the step of that name in catalog/steps.py."""
