"""What the name of a backing file in an image's header means. Pure. The forms are those of bdrv_open_inherit and
path_has_protocol in QEMU's block.c."""

from __future__ import annotations

import json
import posixpath
import re
from typing import Any

_PROTOCOL = re.compile(r"[^/:]+:")


def named_file(text: str, directory: str) -> str:
    """The absolute path of the file that the header of an image in `directory` names. What is no file, as an NBD export, keeps
    its name: it does not begin with `/`."""
    if text.startswith("json:"):
        return _from_json(text.removeprefix("json:"), directory) or text
    if text.startswith("file:"):
        text = re.sub("^//(?=/)", "", text.removeprefix("file:"))
    elif _PROTOCOL.match(text):
        return text
    return posixpath.join(directory, text)


def _from_json(text: str, directory: str) -> str | None:
    """Example: {"driver": "qcow2", "file": {"driver": "file", "filename": "/images/base.qcow2"}}."""
    try:
        node: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for _ in range(10):
        if not isinstance(node, dict):
            return None
        filename = node.get("filename", node.get("file.filename"))
        if isinstance(filename, str):
            kind = node.get("driver") if "filename" in node else node.get("file.driver")
            return posixpath.join(directory, filename) if kind in (None, "file") else None
        node = node.get("file")
    return None
