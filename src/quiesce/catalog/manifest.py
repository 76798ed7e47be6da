"""The manifest beside the images: all the catalog knows of one checkpoint, so that a lost catalog can be made again."""

from __future__ import annotations

import json
from typing import Any

from quiesce.model.errors import QuiesceError
from quiesce.model.tree import Checkpoint
from quiesce.wire.framing import ProtocolError
from quiesce.wire.schema import from_wire, to_wire

FORMAT = 1


def name(checkpoint_id: str) -> str:
    return f"quiesce-{checkpoint_id}.json"


def dump(checkpoint: Checkpoint, domain_xml: str) -> bytes:
    content: dict[str, Any] = {"format": FORMAT, "checkpoint": to_wire(checkpoint), "domain_xml": domain_xml}
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def load(content: bytes) -> tuple[Checkpoint, str]:
    """(checkpoint, domain XML). Raises QuiesceError if this is no manifest."""
    try:
        value = json.loads(content)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise QuiesceError("not a manifest of a known format")
        return from_wire(Checkpoint, value["checkpoint"], own=True), str(value["domain_xml"])
    except (ValueError, KeyError, RecursionError, ProtocolError) as error:
        raise QuiesceError(f"not a manifest: {error}") from error
