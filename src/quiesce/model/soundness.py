"""What every checkpoint must fulfil, wherever its record comes from: a manifest, an export, the catalog. Pure.

The codec checks the types of the fields; this checks what other code relies on. Example: a disk's target becomes part of a file
name, so it has no `/`."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from typing import Any

from quiesce.model.tree import Checkpoint

MAX_TEXT = 255
MAX_PATH = 4096
MAX_ITEMS = 4096
MAX_SIZE = 2**63
MAX_DEPTH = 64
"""Of elements in a domain XML. The chain of a VM's images takes one for each image, and libvirt itself ends at 25."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_FORMAT = re.compile(r"[a-z0-9_-]{1,32}")
_PARTS = ("", ".", "..")


class UnsoundError(ValueError):
    """The message names the field, and never quotes its content."""


def require_sound(node: Checkpoint) -> None:
    """Raises UnsoundError if the record cannot be one of a checkpoint."""
    _keys("id", node.id)
    _keys("host", node.host)
    _keys("vm_uuid", node.vm_uuid)
    _text("name", node.name)
    _text("vm_name", node.vm_name)
    _time("created", node.created)
    if node.proof:
        _time("proof", node.proof.tried)
    if node.spoilt is not None:
        _time("spoilt", node.spoilt)
    if node.parent is not None:
        _keys("parent", node.parent)
    if node.parent == node.id:
        raise UnsoundError("parent: the checkpoint itself")
    _disks(node)
    if len({file.role for file in node.files}) < len(node.files):
        raise UnsoundError("files: two of one role")
    for path in (*node.paths(), *node.changed, *([node.place] if node.place else [])):
        _path(path)
    if node.group:
        _keys("group", node.group.id, *node.group.members)
        _text("group", node.group.group)
        _text("group", node.group.name)
    proofs = node.proof.writers if node.proof else ()
    lists = (("writers", node.writers), ("filesystems", node.filesystems), ("warnings", node.warnings), ("proof", proofs))
    for name, items in lists:
        if len(items) > MAX_ITEMS:
            raise UnsoundError(f"{name}: more than {MAX_ITEMS}")


def require_xml(text: str) -> None:
    """Raises UnsoundError unless `text` is XML that can be read, without entities of its own, and not deep."""
    if "<!DOCTYPE" in text:
        raise UnsoundError("domain_xml: it has a document type")
    parser: ET.XMLPullParser[Any] = ET.XMLPullParser(("start", "end"))
    depth = 0
    try:
        for start in range(0, len(text), 65536):  # so that what is too deep is refused before all of it is built
            parser.feed(text[start : start + 65536])
            for event, *_ in parser.read_events():
                depth += 1 if event == "start" else -1
                if depth > MAX_DEPTH:
                    raise UnsoundError(f"domain_xml: more than {MAX_DEPTH} elements deep")
        parser.close()
    except (ET.ParseError, UnicodeEncodeError):
        raise UnsoundError("domain_xml: not XML") from None


def _disks(node: Checkpoint) -> None:
    targets = [disk.target for disk in node.disks]
    _keys("disks", *targets)
    _keys("excluded", *node.excluded)
    if not targets or len(targets) > MAX_ITEMS or len(set(targets)) < len(targets):
        raise UnsoundError("disks: none, or two of one target")
    if not all(_FORMAT.fullmatch(disk.format) for disk in node.disks):
        raise UnsoundError("disks: not a format")
    if not all(0 <= disk.size < MAX_SIZE for disk in node.disks):
        raise UnsoundError("disks: not a size")


def _keys(field: str, *values: str) -> None:
    if not all(_KEY.fullmatch(value) for value in values):
        raise UnsoundError(f"{field}: not a key of letters, digits, and . _ : -")


def _text(field: str, value: str) -> None:
    if not value.strip() or len(value) > MAX_TEXT:
        raise UnsoundError(f"{field}: blank, or more than {MAX_TEXT} characters")


def _path(path: str) -> None:
    parts = path.split("/")[1:]
    if not path.startswith("/") or len(path) > MAX_PATH or "\0" in path or any(part in _PARTS for part in parts):
        raise UnsoundError("the path of a file: not an absolute one without //, . and ..")
    if any("\ud800" <= character <= "\udfff" for character in path):  # no database takes it
        raise UnsoundError("the path of a file: not text")


def _time(field: str, created: str) -> None:
    try:
        time = datetime.fromisoformat(created)
        fits = time.tzinfo is not None and 1970 <= time.astimezone(UTC).year <= 9000
    except (ValueError, OverflowError):
        fits = False
    if not fits:
        raise UnsoundError(f"{field}: not a time of ISO 8601 with its offset from UTC")
