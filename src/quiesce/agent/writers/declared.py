"""The administrator's files /etc/quiesce/writers.d/*.conf: writers of their own, and settings of other writers.

    [Writer]                              [Match]
    Name=shop                             Writer=redis:*
    Level=front-end                       Required=no
    Unit=shop.service                     HoldTimeoutSec=2
    Stateless=yes

docs/writers.md has all keys. A file that cannot be read, or that others than root can write, shows as a writer that cannot be
held, so that nothing the administrator asked for is passed over in silence.
"""

from __future__ import annotations

import configparser
import glob
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Optional

from quiesce.agent import cgroups, commands, processes
from quiesce.agent.trust import UntrustedError, require_trusted
from quiesce.agent.undos import Undo
from quiesce.agent.writers.account import Account
from quiesce.agent.writers.base import ApplicationWriter, WriterError, left_s
from quiesce.agent.writers.frozen import FrozenCgroup
from quiesce.agent.writers.sqlite import Sqlite
from quiesce.agent.writers.stopped import StoppedService
from quiesce.agent.writers.strangers import Stranger
from quiesce.agent.writers.unsupported import Unreached, Unsupported
from quiesce.model.grades import Grade, Level, RequiredGrade
from quiesce.model.reports import Outcome

DIRECTORY = "/etc/quiesce/writers.d"
COMMAND_TIMEOUT_S = 30.0
"""Longest that a command may run outside the window, or to release, in seconds."""
MAX_HOLD_S = 3600
_WRITER = {
    *("name", "level", "required", "stateless", "crashsafe", "holdtimeoutsec", "paths", "application"),
    *("unit", "action", "cgroup", "prepare", "hold", "release", "position", "verify"),
}
_MATCH = {"writer", "required", "holdtimeoutsec", "level", "action", "grade", "verify"}


class _ConfigurationError(Exception):
    pass


def configured(
    found: list[ApplicationWriter], unaccounted: Callable[[list[ApplicationWriter]], list[ApplicationWriter]] = lambda _: []
) -> list[ApplicationWriter]:
    """These writers, the declared ones, and those that `unaccounted` returns for what all these do not account for; with the
    settings that the files give them."""
    sections: list[tuple[str, configparser.SectionProxy]] = []
    result = list(found)
    for path in sorted(glob.glob(os.path.join(DIRECTORY, "*.conf"))):
        try:
            sections += [(path, section) for section in _read(path)]
        except (OSError, ValueError, UntrustedError, configparser.Error, _ConfigurationError) as error:
            result.append(Misconfigured(path, str(error)))
    result = _apply_all("Match", _apply_all("Writer", result, sections), sections)
    more = _apply_all("Match", unaccounted(result), sections)
    wrong = {writer.id for writer in result if isinstance(writer, Misconfigured)}
    return [*result, *(writer for writer in more if writer.id not in wrong)]


def _apply_all(
    kind: str, found: list[ApplicationWriter], sections: list[tuple[str, configparser.SectionProxy]]
) -> list[ApplicationWriter]:
    """The writers as these sections make them, and one for each file of which a section makes no sense."""
    apply = _declare if kind == "Writer" else _tune
    for path, section in sections:
        if section.name == kind:
            try:
                found = apply(found, section)
            except (ValueError, _ConfigurationError) as error:
                found = [*found, Misconfigured(path, str(error))]
    return found


def _read(path: str) -> list[configparser.SectionProxy]:
    require_trusted(path)
    parser = configparser.ConfigParser(interpolation=None, strict=True, delimiters=("=",), default_section="")
    with open(path, encoding="utf-8") as file:
        parser.read_file(file)
    for name in parser.sections():
        allowed = {"Writer": _WRITER, "Match": _MATCH}.get(name)
        if allowed is None:
            raise _ConfigurationError(f"section [{name}] is not known; there are [Writer] and [Match]")
        unknown = sorted(set(parser[name]) - allowed)
        if unknown:
            raise _ConfigurationError(f"[{name}]: {', '.join(unknown)} is not known")
    return [parser[name] for name in parser.sections()]


def _declare(found: list[ApplicationWriter], section: configparser.SectionProxy) -> list[ApplicationWriter]:
    name = section.get("name") or _missing("Name")
    unit, paths = section.get("unit", ""), section.get("paths", "").split()
    writer: ApplicationWriter
    if section.get("hold"):
        writer = Commands(f"declared:{name}", section)
    elif lost := [key for key in ("prepare", "release", "position") if section.get(key)]:
        raise _ConfigurationError(f"writer {name!r}: {lost[0].title()}= needs Hold=")
    elif _stops(section):
        writer = StoppedService(f"declared:{name}", unit or _missing("Unit"))
    elif unit or section.get("cgroup"):
        writer = DeclaredCgroup(f"declared:{name}", unit=unit, cgroup=_only_cgroup(section.get("cgroup", "")))
    else:
        raise _ConfigurationError(f"writer {name!r} has none of Unit, CGroup, Hold")
    crash_safe = section.getboolean("crashsafe", False)
    if crash_safe:
        _require_crash_safe_possible(writer, section, paths)
    if any(other.id == writer.id for other in found):
        raise _ConfigurationError(f"there is another writer {name!r}")
    writer.application = section.get("application", name)
    writer.stateless = section.getboolean("stateless", False)
    if isinstance(writer, DeclaredCgroup):
        writer.crash_safe = crash_safe
    writer.keeps(paths)
    _apply(writer, section)
    # The administrator's declaration replaces a writer that would freeze the same unit, for a unit can be frozen only once. A
    # unit that is shut down has no SQLite file open, so that writer is not needed either.
    gives_way = (FrozenCgroup, Sqlite) if isinstance(writer, StoppedService) else FrozenCgroup
    account = writer.account()
    # It also answers for what quiesce knows by name only.
    found = [
        other
        for other in found
        if not (isinstance(other, (Unsupported, Unreached, Stranger)) and _has_all(account, other.pids))
    ]
    for other in found:
        if unit and isinstance(other, Sqlite) and other.unit == unit:
            other.freezing = False
    return [other for other in found if not (unit and isinstance(other, gives_way) and other.unit == unit)] + [writer]


def _require_crash_safe_possible(writer: ApplicationWriter, section: configparser.SectionProxy, paths: list[str]) -> None:
    name = section["name"]
    if not isinstance(writer, DeclaredCgroup):
        raise _ConfigurationError(f"writer {name!r}: CrashSafe= is for a unit or control group that is frozen")
    if section.getboolean("stateless", False):
        raise _ConfigurationError(f"writer {name!r}: an application that keeps no data needs no CrashSafe=")
    if not paths:
        raise _ConfigurationError(f"writer {name!r}: CrashSafe= needs Paths=, for all its files must be frozen")


def _has_all(account: Account, pids: tuple[int, ...]) -> bool:
    return bool(pids) and all(account.has(pid, processes.cgroup(pid)) for pid in pids)


def _tune(found: list[ApplicationWriter], section: configparser.SectionProxy) -> list[ApplicationWriter]:
    pattern = section.get("writer") or _missing("Writer")
    result = []
    for writer in found:
        tuned = writer
        if fnmatchcase(writer.id, pattern):
            unit = getattr(writer, "unit", "")
            if _stops(section) and unit:
                tuned = StoppedService(writer.id, unit, writer.application, writer)
                tuned.level, tuned.required = writer.level, writer.required
                tuned.keeps(writer.paths())
            _apply(tuned, section)
        result.append(tuned)
    return result


def _stops(section: configparser.SectionProxy) -> bool:
    action = section.get("action", "freeze")
    if action not in ("freeze", "stop"):
        raise _ConfigurationError(f"Action={action} is not known; there are freeze and stop")
    return action == "stop"


def _apply(writer: ApplicationWriter, section: configparser.SectionProxy) -> None:
    writer.required = section.getboolean("required", writer.required)
    writer.check = tuple(shlex.split(section.get("verify", ""))) or writer.check
    if "grade" in section:
        writer.nil_redo = RequiredGrade(section["grade"]) is RequiredGrade.NIL_REDO
    if "level" in section:
        writer.level = Level(section["level"])
    if "holdtimeoutsec" in section:
        seconds = float(section["holdtimeoutsec"])
        if not 0 < seconds <= MAX_HOLD_S:
            raise _ConfigurationError(f"HoldTimeoutSec={section['holdtimeoutsec']} is not more than 0 and at most {MAX_HOLD_S}")
        writer.hold_limit_ms = int(seconds * 1000)


def _only_cgroup(pattern: str) -> str:
    """The one control group that matches the pattern: a container's name, for one, has a number in it that changes."""
    found = [path[len(cgroups.ROOT) :] for path in glob.glob(f"{cgroups.ROOT}/{pattern.lstrip('/')}")] if pattern else [""]
    if len(found) > 1:
        raise _ConfigurationError(f"CGroup={pattern} matches {len(found)} control groups")
    return found[0] if found else pattern


def _missing(key: str) -> str:
    raise _ConfigurationError(f"{key}= is missing")


class Misconfigured(ApplicationWriter):
    """A file with a mistake in it."""

    application = "configuration"

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"configuration:{path}")
        self._problem = problem

    def on_identify(self, deadline_ns: int) -> None:
        raise WriterError(self._problem, Outcome.NON_RETRYABLE)


class DeclaredCgroup(FrozenCgroup):
    """A unit or control group that the administrator names."""

    crash_safe = False
    """The administrator vouches that the application loses nothing that it acknowledged if the power fails."""

    def on_identify(self, deadline_ns: int) -> None:
        super().on_identify(deadline_ns)
        if self.stateless:
            self.grade = Grade.CLEAN
        elif self.crash_safe:
            self.grade = Grade.STANDS_STILL
            self.reason = "it stands still, and recovers at its next start; that it is crash-safe is its administrator's word"
        else:
            self.grade = Grade.CRASH
            self.reason = (
                "it is frozen anywhere in its work; set Stateless=yes if it keeps no data, or CrashSafe=yes if a power failure"
                " loses nothing that it acknowledged"
            )


class Commands(ApplicationWriter):
    """An application that the administrator's own commands hold and release."""

    outlives = True

    def __init__(self, id: str, section: configparser.SectionProxy) -> None:
        super().__init__(id)
        self._commands = {
            name: shlex.split(section[name]) for name in ("prepare", "hold", "release", "position") if section.get(name)
        }
        if "release" not in self._commands:
            _missing("Release")
        self._unit = section.get("unit", "")
        self._held = False

    def account(self) -> Account:
        return replace(super().account(), unit=self._unit)

    def undo(self) -> Optional[Undo]:
        return Undo(command=tuple(self._commands["release"]))

    def on_identify(self, deadline_ns: int) -> None:
        for command in self._commands.values():
            commands.require_runnable(command[0])
        self._note_position(deadline_ns)
        self.grade, self.reason = Grade.HELD, "by its commands' own account"

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        if "prepare" in self._commands:
            environment = {"QUIESCE_WINDOW_MS": str(window_ms)}
            self._run("prepare", left_s(deadline_ns), environment)

    def on_hold(self, deadline_ns: int) -> None:
        self._held = True
        self._run("hold", left_s(deadline_ns))
        self._note_position(deadline_ns)

    def on_release(self) -> None:
        self._run("release", COMMAND_TIMEOUT_S)
        self._held = False

    def on_abort(self) -> None:
        if self._held:
            self.on_release()

    def _note_position(self, deadline_ns: int) -> None:
        if "position" in self._commands:
            self.position = {"position": self._run("position", min(COMMAND_TIMEOUT_S, left_s(deadline_ns)))}

    def _run(self, name: str, timeout_s: float, environment: Optional[Mapping[str, str]] = None) -> str:
        return commands.run_command(self._commands[name], timeout_s, self.command_observer, environment)
