"""What the agent keeps from one conversation to the next, until the guest is restarted: in memory only, so that it is in no
checkpoint."""

from __future__ import annotations

import json
import os
from typing import Any

DIRECTORY = "/run/quiesce"


def recall(name: str) -> dict[str, Any]:
    """What was kept under this name; empty if nothing was, or it cannot be read."""
    try:
        with open(os.path.join(DIRECTORY, f"{name}.json")) as file:
            value = json.load(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def retain(name: str, value: dict[str, Any]) -> None:
    """Never raises: nothing depends on it but speed, and what is shown."""
    path = os.path.join(DIRECTORY, f"{name}.json")
    try:
        with open(path + ".new", "w") as file:
            json.dump(value, file)
        os.replace(path + ".new", path)
    except OSError:
        pass
