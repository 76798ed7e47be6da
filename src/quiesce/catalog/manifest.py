"""The manifest beside the images. It has everything that the catalog knows of one checkpoint, so that `quiesce catalog rebuild`
can make a lost catalog again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quiesce.codec import CodecError, decode, encode
from quiesce.model.errors import QuiesceError
from quiesce.model.fingerprints import Fingerprint
from quiesce.model.tree import Checkpoint

FORMAT = 3
"""A manifest of format 2 has no fingerprints; an older quiesce wrote it. It is read, too."""


def name(checkpoint_id: str) -> str:
    return f"quiesce-{checkpoint_id}.json"


@dataclass(frozen=True)
class Manifest:
    checkpoint: Checkpoint
    domain_xml: str
    made: tuple[str, ...]
    """The files of the checkpoint that quiesce made; quiesce removes no others."""
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)
    """Of the checkpoint's own images, by path. Empty in a manifest that an older quiesce wrote."""


def dump(manifest: Manifest) -> bytes:
    content: dict[str, Any] = {
        "format": FORMAT,
        "checkpoint": encode(manifest.checkpoint),
        "domain_xml": manifest.domain_xml,
        "made": sorted(manifest.made),
        "fingerprints": {path: encode(fingerprint) for path, fingerprint in manifest.fingerprints.items()},
    }
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def load(content: bytes) -> Manifest:
    """Raises QuiesceError if `content` is not a manifest."""
    try:
        value = json.loads(content)
        if not isinstance(value, dict) or value.get("format") not in (2, FORMAT):
            raise QuiesceError(f"not a manifest of format {FORMAT}, the format that this quiesce reads")
        checkpoint = decode(Checkpoint, value["checkpoint"])
        prints = {path: decode(Fingerprint, print) for path, print in _fingerprints(value).items()}
        return Manifest(checkpoint, str(value["domain_xml"]), tuple(str(path) for path in value["made"]), prints)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, CodecError) as error:
        raise QuiesceError(f"not a manifest: {error}") from error


def _fingerprints(value: dict[str, Any]) -> dict[str, Any]:
    return dict(value["fingerprints"]) if value["format"] == FORMAT else {}


def checkpoint_id(name: str) -> str | None:
    """The id of the checkpoint that a file of this name describes, if any."""
    match = re.fullmatch(r"quiesce-([0-9a-f]{32})\.json", name)
    return match[1] if match else None
