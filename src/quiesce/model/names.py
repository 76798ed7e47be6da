"""Names that users type or strangers send: VMs, checkpoints, `VM@CHECKPOINT`, disks, files and directories. One function for
each kind of name, used wherever such a name comes in."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from datetime import datetime

from quiesce.model.errors import UsageError

MAX_NAME = 100
"""Hyper-V's own limit for a checkpoint's name, in characters."""
MAX_VM_NAME = 240
"""In bytes. A file name has at most 255, and libvirt writes NAME.xml.new."""
MAX_STEM = 100
"""Most characters of a VM's name in the name of a file."""
HELPER_PREFIX = "quiesce-merge-"
"""Prefix of the names of helper domains, in which images are merged and copied."""
TRIAL_PREFIX = "quiesce-trial-"
"""Prefix of the names of copies of checkpoints that are booted aside."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TARGET = re.compile(r"[a-z][a-z0-9]{1,15}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class CheckpointReference:
    vm: str
    checkpoint: str


def parse_reference(text: str) -> tuple[CheckpointReference, ...]:
    """`VM@CHECKPOINT`, divided at each @, the shortest name of a VM first: VMs and checkpoints may have an @ in their names.
    Example: `a@b@c` is checkpoint `b@c` of VM `a`, or checkpoint `c` of VM `a@b`. Raises UsageError if there is no division."""
    found = [CheckpointReference(text[:at], text[at + 1 :]) for at in range(1, len(text) - 1) if text[at] == "@"]
    if not found:
        raise UsageError(f"{text!r} does not name a checkpoint", hint="write VM@CHECKPOINT, as in web1@before-upgrade")
    return tuple(found)


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


def check_vm_name(name: str) -> str:
    """Returns `name`. Raises UsageError if a new VM must not have this name: libvirt refuses it, or it is no single component
    of a path."""
    if not name.strip():
        raise UsageError("a VM's name must not be blank")
    if name != name.strip():
        raise UsageError("a VM's name must not begin or end with a space")
    if not name.isprintable():
        raise UsageError("a VM's name must not contain control characters")
    if "/" in name or name in (".", ".."):
        raise UsageError(f"a VM's name must not be {_shown(name)}: it must be usable as the name of a file")
    if len(name.encode()) > MAX_VM_NAME:
        raise UsageError(f"a VM's name has at most {MAX_VM_NAME} bytes, this one {len(name.encode())}")
    if name.startswith((HELPER_PREFIX, TRIAL_PREFIX)):
        raise UsageError(
            f"a VM's name must not begin with {HELPER_PREFIX} or {TRIAL_PREFIX}: quiesce names domains of its own so"
        )
    return name


def check_uuid(text: str) -> str:
    """Returns `text`. Raises UsageError if it is not a UUID as libvirt writes it."""
    return _of_form(_UUID, text, "a UUID")


def check_target(text: str) -> str:
    """Returns `text`. Raises UsageError if it is not the target of a disk, as `vda`."""
    return _of_form(_TARGET, text, "the target of a disk")


def check_file_name(name: str) -> str:
    """Returns `name`. Raises UsageError if it is not the plain name of a file in its directory."""
    return _of_form(_FILE, name, "the name of a file in its directory")


def check_directory(path: str) -> str:
    """Returns `path` without superfluous slashes. Raises UsageError if it is not the absolute path of a directory below /."""
    shorter = re.sub("//+", "/", path).rstrip("/")
    if not shorter.startswith("/") or not path.isprintable() or posixpath.normpath(shorter) != shorter:
        raise UsageError(f"{_shown(path)} is not an absolute path", hint="name a directory of the host, as /srv/export")
    return shorter


def file_stem(name: str) -> str:
    """What the names of a VM's files begin with: its name, cut, in characters that every file name may have."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:MAX_STEM]


def _of_form(form: re.Pattern[str], text: str, what: str) -> str:
    if not form.fullmatch(text):
        raise UsageError(f"{_shown(text)} is not {what}")
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}...")


def default_checkpoint_name(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H.%M.%SZ")


def automatic_name(now: datetime) -> str:
    return f"automatic {default_checkpoint_name(now)}"
