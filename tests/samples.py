"""Checkpoints, made up."""

from __future__ import annotations

from typing import Any

from quiesce.catalog.store import Catalog
from quiesce.model.grades import Consistency
from quiesce.model.keys import VmKey
from quiesce.model.tree import Checkpoint, DiskImage, Kind

KEY = VmKey("host1", "uuid-1")
"""Of the VM that made-up checkpoints are of."""


def node(key: str, *, name: str | None = None, targets: tuple[str, ...] = ("vda",), **others: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "id": key,
        "host": "host1",
        "vm_uuid": "uuid-1",
        "vm_name": "web1",
        "name": name or key,
        "created": "2026-01-01T00:00:00.000+00:00",
        "kind": Kind.PRODUCTION,
        "consistency": Consistency.APPLICATION,
        "required": Consistency.APPLICATION,
        "disks": tuple(DiskImage(target, f"/images/{key}.{target}.qcow2", "qcow2") for target in targets),
    }
    return Checkpoint(**{**values, **others})


def ids(catalog: Catalog) -> list[str]:
    """Of the made-up checkpoints that it has."""
    return [found.id for found in catalog.checkpoints.tree(KEY).checkpoints]
