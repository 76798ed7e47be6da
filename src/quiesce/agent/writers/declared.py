"""What the administrator says in /etc/quiesce/writers.d/*.conf: writers of their own, and how others are to be treated.

    [Writer]                              [Match]
    Name=shop                             Writer=redis:*
    Level=front-end                       Required=no
    Unit=shop.service                     HoldTimeoutSec=2
    Stateless=yes

docs/writers.md has all keys. A file that cannot be read, or that others than root can write, is itself a writer that cannot be
held: nothing an administrator asked for is passed over in silence.
"""

from __future__ import annotations

import configparser
import glob
import os
import shlex
from fnmatch import fnmatchcase
from typing import Optional

from quiesce.agent import cgroups, commands
from quiesce.agent.deadman import Undo
from quiesce.agent.trust import UntrustedError, require_trusted
from quiesce.agent.writers import ApplicationWriter, WriterError, left_s
from quiesce.agent.writers.frozen import Frozen
from quiesce.agent.writers.stopped import StoppedService
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome

DIRECTORY = "/etc/quiesce/writers.d"
COMMAND_TIMEOUT_S = 30.0
"""Longest that a command outside the window, or one that releases, may run, in seconds."""
_WRITER = {
    *("name", "level", "required", "stateless", "holdtimeoutsec", "paths", "application"),
    *("unit", "action", "cgroup", "prepare", "hold", "release", "position"),
}
_MATCH = {"writer", "required", "holdtimeoutsec", "level", "action"}


class _ConfigurationError(Exception):
    pass


def configured(found: list[ApplicationWriter]) -> list[ApplicationWriter]:
    """These writers and the declared ones, each as it is to be treated."""
    sections: list[tuple[str, configparser.SectionProxy]] = []
    result = list(found)
    for path in sorted(glob.glob(os.path.join(DIRECTORY, "*.conf"))):
        try:
            sections += [(path, section) for section in _read(path)]
        except (OSError, UntrustedError, configparser.Error, _ConfigurationError) as error:
            result.append(Misconfigured(path, str(error)))
    for kind, apply in (("Writer", _declare), ("Match", _tune)):
        for path, section in sections:
            if section.name == kind:
                try:
                    result = apply(result, section)
                except (ValueError, _ConfigurationError) as error:
                    result.append(Misconfigured(path, str(error)))
    return result


def _read(path: str) -> list[configparser.SectionProxy]:
    require_trusted(path)
    parser = configparser.ConfigParser(interpolation=None, strict=True, delimiters=("=",))
    with open(path) as file:
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
    unit = section.get("unit", "")
    writer: ApplicationWriter
    if section.get("hold"):
        writer = Commands(f"declared:{name}", section)
    elif unit and section.get("action", "freeze") == "stop":
        writer = StoppedService(f"declared:{name}", unit)
    elif unit or section.get("cgroup"):
        writer = DeclaredFrozen(f"declared:{name}", unit=unit, cgroup=_only_cgroup(section.get("cgroup", "")))
    else:
        raise _ConfigurationError(f"writer {name!r} has none of Unit, CGroup, Hold")
    writer.application = section.get("application", name)
    writer.stateless = section.getboolean("stateless", False)
    writer.data_directory = next(iter(section.get("paths", "").split()), None)
    _apply(writer, section)
    # Who names a unit knows better than we what to do with it.
    return [other for other in found if not (unit and isinstance(other, Frozen) and other.unit == unit)] + [writer]


def _tune(found: list[ApplicationWriter], section: configparser.SectionProxy) -> list[ApplicationWriter]:
    pattern = section.get("writer") or _missing("Writer")
    result = []
    for writer in found:
        tuned = writer
        if fnmatchcase(writer.id, pattern):
            unit = getattr(writer, "unit", "")
            if section.get("action") == "stop" and unit:
                tuned = StoppedService(writer.id, unit, writer.application)
                tuned.data_directory = writer.data_directory
            elif section.get("action", "freeze") != "freeze":
                raise _ConfigurationError(f"Action={section.get('action')} is not possible for {writer.id}")
            _apply(tuned, section)
        result.append(tuned)
    return result


def _apply(writer: ApplicationWriter, section: configparser.SectionProxy) -> None:
    writer.required = section.getboolean("required", writer.required)
    if "level" in section:
        writer.level = Level(section["level"])
    if "holdtimeoutsec" in section:
        writer.hold_limit_ms = int(float(section["holdtimeoutsec"]) * 1000)


def _only_cgroup(pattern: str) -> str:
    """The one control group that matches, as a container's, whose name has a number in it."""
    found = [path[len(cgroups.ROOT) :] for path in glob.glob(cgroups.ROOT + pattern)] if pattern else [""]
    if len(found) > 1:
        raise _ConfigurationError(f"CGroup={pattern} matches {len(found)} control groups")
    return found[0] if found else pattern


def _missing(key: str) -> str:
    raise _ConfigurationError(f"{key}= is missing")


class Misconfigured(ApplicationWriter):
    """A file that says what cannot be done."""

    application = "configuration"

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"configuration:{path}")
        self._problem = problem

    def on_identify(self, deadline_ns: int) -> None:
        raise WriterError(self._problem, Outcome.NON_RETRYABLE)


class DeclaredFrozen(Frozen):
    """A unit, or a control group, of the administrator's choice."""

    def on_identify(self, deadline_ns: int) -> None:
        super().on_identify(deadline_ns)
        if self.stateless:
            self.grade = Grade.CLEAN
        else:
            self.grade, self.reason = Grade.CRASH, "frozen anywhere in its work; say Stateless=yes if it keeps no data"


class Commands(ApplicationWriter):
    """Held by a command of the administrator's."""

    outlives = True

    def __init__(self, id: str, section: configparser.SectionProxy) -> None:
        super().__init__(id)
        self._commands = {
            name: shlex.split(section[name]) for name in ("prepare", "hold", "release", "position") if section.get(name)
        }
        if "release" not in self._commands:
            _missing("Release")
        self._paths = section.get("paths", "").split()
        self._held = False

    def undo(self) -> Optional[Undo]:
        return Undo(command=tuple(self._commands["release"]))

    def on_identify(self, deadline_ns: int) -> None:
        for command in self._commands.values():
            commands.require_runnable(command[0])
        self._note_position(deadline_ns)
        self.grade, self.reason = Grade.HELD, "by its commands' own account"

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        if "prepare" in self._commands:
            commands.run(self._commands["prepare"], left_s(deadline_ns), {"QUIESCE_WINDOW_MS": str(window_ms)})

    def on_hold(self, deadline_ns: int) -> None:
        self._held = True
        commands.run(self._commands["hold"], left_s(deadline_ns))
        self._note_position(deadline_ns)

    def on_release(self) -> None:
        self._held = False
        commands.run(self._commands["release"], COMMAND_TIMEOUT_S)

    def on_abort(self) -> None:
        if self._held:
            self.on_release()

    def paths(self) -> list[str]:
        return self._paths

    def _note_position(self, deadline_ns: int) -> None:
        if "position" in self._commands:
            self.position = {"position": commands.run(self._commands["position"], min(COMMAND_TIMEOUT_S, left_s(deadline_ns)))}
