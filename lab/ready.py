"""A guest that is booted and has this very agent installed: kept as a RAM image, for all that need one."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from lab.image import Image
from lab.machine import Machine, SavedMachine, saved
from quiesce.catalog.store import Catalog
from quiesce.operations import agent_archive
from quiesce.operations.context import Context
from quiesce.operations.guest_install import RULE_TEXT, UNIT_TEXT, guest_install


def booted(image: Image) -> SavedMachine:
    """A guest just booted, PostgreSQL up, without our agent."""
    return saved("booted", image, Machine.wait_for_postgresql)


def ready(image: Image) -> SavedMachine:
    """The same with the agent."""
    key = hashlib.sha256(agent_archive.build() + UNIT_TEXT.encode() + RULE_TEXT.encode()).hexdigest()[:16]
    return saved(f"agent-{key}", image, _install, start_from=booted(image))


def _install(machine: Machine) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        catalog = Catalog(f"sqlite:///{Path(scratch)}/catalog.db")
        guest_install(Context("qemu:///system", catalog, lambda _: None), machine.name)
        catalog.close()
