"""Keeps values from one conversation to the next, until the guest restarts: in /run, which is memory, so that no checkpoint has
them."""

from __future__ import annotations

import json
import os
from typing import Any

DIRECTORY = "/run/quiesce"


def recall(name: str) -> dict[str, Any]:
    """The value kept under this name; empty if there is none, or it cannot be read."""
    try:
        with open(os.path.join(DIRECTORY, f"{name}.json")) as file:
            value = json.load(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def retain(name: str, value: dict[str, Any]) -> None:
    """Never raises: only speed and what is shown depend on it."""
    path = os.path.join(DIRECTORY, f"{name}.json")
    try:
        with open(path + ".new", "w") as file:
            json.dump(value, file)
        os.replace(path + ".new", path)
    except OSError:
        pass
