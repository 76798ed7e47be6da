"""Names that users type: VMs, checkpoints, and `VM@CHECKPOINT`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from quiesce.model.errors import UsageError

MAX_NAME = 100
"""Hyper-V's own limit for a checkpoint's name, in characters."""


@dataclass(frozen=True)
class CheckpointReference:
    vm: str
    checkpoint: str


def parse_reference(text: str) -> CheckpointReference:
    """`VM@CHECKPOINT`, divided at the first @. Raises UsageError."""
    vm, separator, checkpoint = text.partition("@")
    if not (separator and vm and checkpoint):
        raise UsageError(f"{text!r} does not name a checkpoint", hint="write VM@CHECKPOINT, as in web1@before-upgrade")
    return CheckpointReference(vm, checkpoint)


def check_checkpoint_name(name: str) -> str:
    """Returns `name`. Raises UsageError if a checkpoint must not have this name."""
    if not name.strip():
        raise UsageError("a checkpoint's name must not be blank")
    if len(name) > MAX_NAME:
        raise UsageError(f"a checkpoint's name has at most {MAX_NAME} characters, this one {len(name)}")
    if name != name.strip():
        raise UsageError("a checkpoint's name must not begin or end with a space")
    if not name.isprintable():
        raise UsageError("a checkpoint's name must not contain control characters")
    return name


def default_checkpoint_name(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H.%M.%SZ")


def automatic_name(now: datetime) -> str:
    return f"automatic {default_checkpoint_name(now)}"
