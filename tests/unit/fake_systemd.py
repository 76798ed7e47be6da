"""Stands for systemd and the kernel's control groups: a script that answers as systemctl, and plain files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RUNNING = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "Result": "success",
    "WatchdogUSec": "0",
    "FreezerState": "running",
}

_SCRIPT = """\
#!/bin/sh
cd {directory}
echo "$*" >>calls
if [ -e fails ]; then cat fails >&2; exit 1; fi
[ ! -e hangs ] || exec sleep 60
if [ "$1" = show ]; then
    while [ "$1" != -- ]; do shift; done
    shift
    for unit; do
        if [ -e "units/$unit" ]; then cat "units/$unit"; else echo LoadState=not-found; echo ActiveState=inactive; fi
        echo
    done
else
    for unit; do :; done
    [ ! -e "$1/$unit" ] || cp "$1/$unit" units/
    [ ! -e "$1/fails" ] || exit 1
fi
"""


class Systemctl:
    """A program at `path`, to be put in place of systemd.SYSTEMCTL."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "systemctl.d"
        for each in (self.directory / "units", self.directory / "stop", self.directory / "start"):
            each.mkdir(parents=True)
        self.path = str(directory / "systemctl")
        Path(self.path).write_text(_SCRIPT.format(directory=self.directory))
        Path(self.path).chmod(0o755)

    def has(self, unit: str, where: str = "units", **properties: str) -> None:
        """A unit, or (`where`) what it becomes by `stop` or `start`."""
        known = {**RUNNING, "ControlGroup": f"/system.slice/{unit}", **properties}
        (self.directory / where / unit).write_text("".join(f"{name}={value}\n" for name, value in known.items()))

    def can_be_stopped(self, unit: str) -> None:
        self.has(unit)
        self.has(unit, "stop", ActiveState="inactive")
        self.has(unit, "start")

    def fails(self, words: str) -> None:
        (self.directory / "fails").write_text(words)

    def hangs(self) -> None:
        (self.directory / "hangs").touch()

    @property
    def calls(self) -> list[str]:
        """What was asked, without the questions after a unit's state."""
        calls = self.directory / "calls"
        return [line for line in calls.read_text().splitlines() if not line.startswith("show")] if calls.exists() else []


@dataclass
class Group:
    directory: Path

    @property
    def asked(self) -> str:
        return (self.directory / "cgroup.freeze").read_text().strip()

    def set(self, asked: str) -> None:
        """As somebody else does."""
        (self.directory / "cgroup.freeze").write_text(asked)

    def settles(self, frozen: bool = True, *, populated: bool = True) -> None:
        (self.directory / "cgroup.events").write_text(f"populated {int(populated)}\nfrozen {int(frozen)}\n")

    def stuck(self) -> None:
        (self.directory / "cgroup.freeze").unlink()
        (self.directory / "cgroup.freeze").symlink_to("/dev/full")


def group_below(root: Path, path: str) -> Group:
    group = Group(root / path.lstrip("/"))
    group.directory.mkdir(parents=True)
    group.set("0")
    group.settles(False)
    return group
