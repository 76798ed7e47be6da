"""Scripts that were written for other platforms, run unchanged: qemu-guest-agent's fsfreeze-hook.d, VMware's backupScripts.d,
Azure's VMSnapshotScriptPluginConfig.json.

Unlike on those platforms, a script's failure counts, a script that does not end is killed, and thawing runs in reverse order.
Whether a script really holds its application cannot be checked, so the grade is `held`. Sources of the three contracts: QEMU's
scripts/qemu-guest-agent/fsfreeze-hook; open-vm-tools' services/plugins/vmbackup/scriptOps.c; Azure/azure-linux-extensions'
VMBackup/main/ScriptRunner.py.
"""

from __future__ import annotations

import glob
import json
import os
import stat
from collections.abc import Iterator
from typing import Optional

from quiesce.agent import commands, looks
from quiesce.agent.trust import UntrustedError, require_trusted
from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import ApplicationWriter, WriterError, left_s
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome

QEMU_DIRECTORIES = ("/etc/qemu/fsfreeze-hook.d", "/etc/qemu-ga/fsfreeze-hook.d")
VMWARE_DIRECTORY = "/etc/vmware-tools/backupScripts.d"
VMWARE_LEGACY = ("/usr/sbin/pre-freeze-script", "/usr/sbin/post-thaw-script")
AZURE_CONFIGURATION = "/etc/azure/VMSnapshotScriptPluginConfig.json"
IGNORED = (
    "~",
    ".bak",
    ".orig",
    ".rpmnew",
    ".rpmorig",
    ".rpmsave",
    ".sample",
    ".dpkg-old",
    ".dpkg-new",
    ".dpkg-tmp",
    ".dpkg-dist",
    ".dpkg-bak",
    ".dpkg-backup",
    ".dpkg-remove",
)
OURS = "50-quiesce"
"""The script that this agent itself puts into VMware's directory (install.py)."""
HOLD_LIMIT_MS = 5000
THAW_TIMEOUT_S = 30.0
"""Longest that a thawing script may run, in seconds."""


def discover(*, without: str = "") -> list[ApplicationWriter]:
    """One writer for each script, in the order in which they hold. `without`: the platform that runs its own scripts itself."""
    found: list[ApplicationWriter] = []
    for directory in {os.path.realpath(each): each for each in QEMU_DIRECTORIES}.values():
        found += [
            Script(f"fsfreeze-hook:{os.path.basename(path)}", [path, "freeze"], [path, "thaw"]) for path in _scripts(directory)
        ]
    if without != "vmware":
        before, after = ([path] if os.path.isfile(path) else [] for path in VMWARE_LEGACY)
        if before or after:
            found.append(Script("vmware:pre-freeze-script", before, after))
        found += [
            Script(f"vmware:{os.path.basename(path)}", [path, "freeze"], [path, "thaw"], [path, "freezeFail"])
            for path in _scripts(VMWARE_DIRECTORY)
        ]
    if os.path.exists(AZURE_CONFIGURATION):
        found.append(Azure())
    return found


def _scripts(directory: str) -> Iterator[str]:
    for path in sorted(glob.glob(os.path.join(directory, "*"))):
        name = os.path.basename(path)
        if not name.endswith(IGNORED) and name != OURS and _is_script(path):
            yield path


def _is_script(path: str) -> bool:
    """True as well for a link to a filesystem that does not answer: `on_identify` says so."""
    try:
        return looks.at(path, os.path.isfile, path) and os.access(path, os.X_OK)
    except looks.NotAnsweringError:
        return True


class Script(ApplicationWriter):
    """One script, or a pair of them."""

    application = "script"
    outlives = True

    def __init__(self, id: str, freeze: list[str], thaw: list[str], failed: Optional[list[str]] = None) -> None:
        super().__init__(id)
        self._freeze = freeze
        self._thaw = thaw
        self._failed = failed or thaw
        self.outlives = bool(self._failed)
        self._frozen = False
        self.hold_limit_ms = HOLD_LIMIT_MS

    def undo(self) -> Optional[Undo]:
        return Undo(command=tuple(self._failed)) if self._failed else None

    def on_identify(self, deadline_ns: int) -> None:
        for command in (self._freeze, self._thaw):
            if command:
                commands.require_runnable(command[0])
        self.grade, self.reason = Grade.HELD, "by its script's own account"

    def on_hold(self, deadline_ns: int) -> None:
        if self._freeze:
            self._frozen = True  # before it runs: one that fails may have frozen a part
            commands.run_command(self._freeze, left_s(deadline_ns), self.command_observer)

    def on_release(self) -> None:
        if self._thaw:
            commands.run_command(self._thaw, THAW_TIMEOUT_S, self.command_observer)
        self._frozen = False

    def on_abort(self) -> None:
        if self._frozen and self._failed:
            commands.run_command(self._failed, THAW_TIMEOUT_S, self.command_observer)
        self._frozen = False


class Azure(Script):
    """The pair that Azure's configuration file names."""

    def __init__(self) -> None:
        super().__init__("azure:scripts", [], [])
        self._problem = ""
        try:
            require_trusted(AZURE_CONFIGURATION)
            with open(AZURE_CONFIGURATION) as file:
                settings = json.load(file)
            self._freeze = self._command(settings, "pre")
            self._thaw = self._failed = self._command(settings, "post")
            self.outlives = True
            self.hold_limit_ms = 1000 * min(1800, int(settings.get("timeoutInSeconds", 30)))
            self.required = settings.get("continueBackupOnFailure") is not True
        except KeyError as error:
            self._problem = f"{AZURE_CONFIGURATION}: {error.args[0]} is missing"
        except (OSError, ValueError, OverflowError, TypeError, AttributeError, UntrustedError) as error:
            self._problem = f"{AZURE_CONFIGURATION}: {error}"

    @staticmethod
    def _command(settings: dict[str, object], which: str) -> list[str]:
        """Azure runs the script by `sh`, whatever its first line says."""
        parameters = settings.get(f"{which}ScriptParams") or []
        if not isinstance(parameters, list):
            raise TypeError(f"{which}ScriptParams is no list")
        return ["/bin/sh", str(settings[f"{which}ScriptLocation"]), *map(str, parameters)]

    def on_identify(self, deadline_ns: int) -> None:
        if self._problem:
            raise WriterError(self._problem, Outcome.NON_RETRYABLE)
        for _, script, *_ in (self._freeze, self._thaw):
            commands.require_runnable(script)
            if os.stat(script).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise WriterError(f"{script} must be root's alone, as Azure has it: chmod 700 {script}", Outcome.NON_RETRYABLE)
        self.grade, self.reason = Grade.HELD, "by its scripts' own account"
