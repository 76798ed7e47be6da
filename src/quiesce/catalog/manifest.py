"""The manifest beside the images. It has everything that the catalog knows of one checkpoint, so that `quiesce catalog rebuild`
can make a lost catalog again.

A manifest is input: somebody else may have written it. Its seal (catalog/seal.py) tells whether quiesce did. It does not list
the files that quiesce may remove: disks/images.py derives them from the checkpoint's own files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from quiesce.catalog.seal import Seal
from quiesce.codec import CodecError, decode, encode
from quiesce.model.errors import QuiesceError
from quiesce.model.fingerprints import Fingerprint
from quiesce.model.names import check_checkpoint_name
from quiesce.model.soundness import require_sound, require_xml
from quiesce.model.tree import Checkpoint

FORMAT = 4
MAX_BYTES = 4 * 1024 * 1024
"""Of a manifest. The reports of a guest with hundreds of applications take less than a tenth."""


def name(checkpoint_id: str) -> str:
    return f"quiesce-{checkpoint_id}.json"


@dataclass(frozen=True)
class Manifest:
    checkpoint: Checkpoint
    domain_xml: str
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)
    """Of the checkpoint's own images, by path."""


@dataclass(frozen=True)
class _Body:
    """The fields of the file, without its seal."""

    format: int
    checkpoint: Checkpoint
    domain_xml: str
    fingerprints: dict[str, Fingerprint]


@dataclass(frozen=True)
class Loaded:
    manifest: Manifest
    sealed: bool
    """Whether it has this catalog's seal: then quiesce wrote it, and nobody changed it since."""


def dump(manifest: Manifest, seal: Seal) -> bytes:
    body = encode(_Body(FORMAT, manifest.checkpoint, manifest.domain_xml, dict(manifest.fingerprints)))
    return json.dumps({**body, "seal": seal.of(_canonical(body))}, indent=1, sort_keys=True).encode() + b"\n"


def load(content: bytes, seal: Seal) -> Loaded:
    """Raises QuiesceError if `content` is not a manifest, or describes what no checkpoint can be."""
    try:
        value = json.loads(content) if len(content) <= MAX_BYTES else None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise QuiesceError(f"not a manifest of format {FORMAT}, the format that this quiesce reads")
        given = value.pop("seal", "")
        body = decode(_Body, value)
        _require_sound(body)
        sealed = isinstance(given, str) and seal.fits(_canonical(value), given)
    except (ValueError, RecursionError) as error:
        raise QuiesceError(f"not a manifest: {error}") from error
    return Loaded(Manifest(body.checkpoint, body.domain_xml, body.fingerprints), sealed)


def _require_sound(body: _Body) -> None:
    require_sound(body.checkpoint)
    require_xml(body.domain_xml)
    try:
        check_checkpoint_name(body.checkpoint.name)
    except QuiesceError as error:
        raise CodecError(error.message) from None
    if not body.fingerprints.keys() <= {disk.path for disk in body.checkpoint.disks}:
        raise CodecError("fingerprints: of an image that is not the checkpoint's own")


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


ENDS = "quiesce-", ".json"
"""How the name of every manifest begins and ends."""


def checkpoint_id(name: str) -> str | None:
    """The id of the checkpoint that a file of this name describes, if any."""
    match = re.fullmatch(r"quiesce-([0-9a-f]{32})\.json", name)
    return match[1] if match else None
