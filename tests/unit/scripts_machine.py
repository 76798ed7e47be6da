"""A machine with the scripts of platforms: real shell scripts, in directories of a test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quiesce.agent.writers import scripts
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns

NOTE = 'echo "$(basename $0)${1:+ $1}" >>%s/order'


class Machine:
    """Its directories are a test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.qemu, self.vmware = directory / "fsfreeze-hook.d", directory / "backupScripts.d"
        self.azure = directory / "VMSnapshotScriptPluginConfig.json"
        self._seen = 0
        for each in (self.qemu, self.vmware):
            each.mkdir()

    def script(self, path: Path, then: str = "", mode: int = 0o755) -> Path:
        """One that notes how it was called."""
        path.write_text(f"#!/bin/sh\n{NOTE % self.directory}\n{then}\n")
        path.chmod(mode)
        return path

    def azure_pair(self, **settings: Any) -> None:
        pre = self.script(self.directory / "pre.sh", mode=0o700)
        post = self.script(self.directory / "post.sh", mode=0o700)
        known = {"pluginName": "ScriptRunner", "preScriptLocation": str(pre), "postScriptLocation": str(post)}
        self.azure.write_text(json.dumps({**known, **settings}))
        self.azure.chmod(0o600)

    def order(self) -> list[str]:
        """How scripts were called since the last time."""
        path = self.directory / "order"
        lines = path.read_text().splitlines()[self._seen :] if path.exists() else []
        self._seen += len(lines)
        return lines


def make_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """What the agent sees from now on instead of this one."""
    made = Machine(tmp_path)
    monkeypatch.setattr(scripts, "QEMU_DIRECTORIES", (str(made.qemu), str(tmp_path / "absent")))
    monkeypatch.setattr(scripts, "VMWARE_DIRECTORY", str(made.vmware))
    monkeypatch.setattr(scripts, "VMWARE_LEGACY", (str(tmp_path / "pre-freeze-script"), str(tmp_path / "post-thaw-script")))
    monkeypatch.setattr(scripts, "AZURE_CONFIGURATION", str(made.azure))
    return made


def found() -> list[ApplicationWriter]:
    """Those of this machine, prepared, and guarded as an attempt has them."""
    writers = scripts.discover()
    for writer in writers:
        writer.guarded = writer.undo() is not None
        writer.prepare(deadline_in_ns(10), 1000)
    return writers


def hold(*writers: ApplicationWriter) -> None:
    for writer in writers:
        writer.hold(deadline_in_ns(10))


def release(*writers: ApplicationWriter) -> None:
    for writer in reversed(writers):
        writer.release()


def failed_hold(writer: ApplicationWriter) -> WriterError:
    with pytest.raises(WriterError) as raised:
        writer.hold(deadline_in_ns(10))
    return raised.value
