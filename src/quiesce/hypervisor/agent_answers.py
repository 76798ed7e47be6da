"""The answers of qemu-guest-agent. Pure.

A guest may send anything instead: its root owns the agent. Each command has a schema here, and every answer passes through
`decoded`. Fields that the schema does not have are left out, as newer agents send more of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quiesce.codec import MAX_INT
from quiesce.wire.schema import printable

MAX_ANSWER = 1024 * 1024
"""Characters of an answer. The output of a command is the longest, and the commands that quiesce runs say little."""
MAX_TEXT = 256
"""Most characters of a name that are kept."""
MAX_ITEMS = 1024
MAX_OUTPUT = 64 * 1024
"""Most bytes of a command's output that are kept, of its end."""


class AnswerError(ValueError):
    """The message names the field, and never quotes its content."""


class Output:
    """The type of a field with a command's output in base64: its end, as text."""


@dataclass(frozen=True)
class May:
    """A field that may be missing or null."""

    kind: Any
    default: Any


_COMMAND = {"name": str, "enabled": bool}
_VOLUME = {"mountpoint": str, "type": str, "name": str}
SCHEMAS: Mapping[str, Any] = {
    "guest-info": {"version": str, "supported_commands": [_COMMAND]},
    "guest-get-osinfo": {"id": May(str, ""), "pretty-name": May(str, "")},
    "guest-get-fsinfo": [_VOLUME],
    "guest-file-open": int,
    "guest-file-write": {"count": int},
    "guest-file-close": {},
    "guest-exec": {"pid": int},
    "guest-exec-status": {
        "exited": bool,
        "exitcode": May(int, 128),
        "out-data": May(Output, ""),
        "err-data": May(Output, ""),
    },
    "guest-fsfreeze-freeze": int,
    "guest-fsfreeze-thaw": int,
    "guest-fsfreeze-status": str,
}
"""What a command returns: str, int, bool, Output; a list of one of these; or an object, as the fields that are used."""


def decoded(command: str, answer: object) -> Any:
    """What the agent returned. Texts are printable and at most MAX_TEXT long. Raises AnswerError."""
    if not isinstance(answer, str) or len(answer) > MAX_ANSWER:
        raise AnswerError(f"not a text of at most {MAX_ANSWER} characters")
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise AnswerError("not JSON") from error
    if not isinstance(value, dict) or "return" not in value:
        raise AnswerError("not an object with `return`")
    return _decoded(SCHEMAS[command], value["return"], "return")


def _decoded(schema: Any, value: Any, where: str) -> Any:
    if isinstance(schema, May):
        return schema.default if value is None else _decoded(schema.kind, value, where)
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            raise AnswerError(f"{where}: not an object")
        return {name: _decoded(kind, value.get(name), f"{where}.{name}") for name, kind in schema.items()}
    if isinstance(schema, list):
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise AnswerError(f"{where}: not a list of at most {MAX_ITEMS} items")
        return [_decoded(schema[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if schema is Output:
        return _output(value, where)
    if type(value) is not schema or (schema is int and abs(value) > MAX_INT):
        raise AnswerError(f"{where}: not of the type {schema.__name__}")
    return printable(value[:MAX_TEXT]) if schema is str else value


def _output(value: Any, where: str) -> str:
    try:
        if isinstance(value, str):
            return printable(base64.b64decode(value, validate=True)[-MAX_OUTPUT:].decode(errors="replace").strip())
    except ValueError:
        pass
    raise AnswerError(f"{where}: not base64")
