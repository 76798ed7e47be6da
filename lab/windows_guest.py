"""Plays the qemu-guest-agent of a Windows guest, in a Linux guest, on the real port.

    python3 windows_guest.py SCENARIO SECONDS

It replaces the real agent until it receives END, at most for SECONDS. It really holds writes: it freezes the filesystem HELD,
and thaws it by itself when VSS would. It needs only the standard library; `lab.windows` puts it into a guest.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PORT = "/dev/virtio-ports/org.qemu.guest_agent.0"
LOG = "/run/windows-guest.log"
"""A line for each event: CLOCK_MONOTONIC in ns, and its name."""
HELD = "/var/lib/postgresql"
END = "guest-lab-end"
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878

ALLOWED_WHILE_FROZEN = (
    "guest-ping",
    "guest-info",
    "guest-sync",
    "guest-sync-delimited",
    "guest-fsfreeze-status",
    "guest-fsfreeze-thaw",
    END,
)
ALLOWED_ELSE = ("guest-get-osinfo", "guest-get-fsinfo", "guest-fsfreeze-freeze")


@dataclass(frozen=True)
class Scenario:
    refusal: str = ""
    """The error of the freeze; empty: it succeeds."""
    prepare_s: float = 0.2
    """Seconds from the command until the filesystem is frozen."""
    late_s: float = 0
    """Seconds from then until the answer."""
    hold_s: float = 10
    """Longest time that VSS holds, in seconds."""
    frozen: int = 3
    thawed: int = 3


SCENARIOS = {
    "ok": Scenario(late_s=1),  # long enough for a write to begin while the filesystem is frozen, on the slowest machine
    "slow-freeze": Scenario(prepare_s=11),
    "freeze-hangs": Scenario(late_s=6),
    "writer-fails-at-freeze": Scenario(refusal="DoSnapshotSet exited without Frozen event: Unspecified error"),
    "hold-times-out": Scenario(hold_s=0.01),
    "count-mismatch": Scenario(thawed=2),
}


class RefusedError(Exception):
    """An error that the guest answers."""

    def __init__(self, text: str, kind: str = "GenericError") -> None:
        super().__init__(text)
        self.kind = kind


class Log:
    """A log in memory (/run is a tmpfs), so that it can be written while the filesystems are frozen."""

    def __init__(self) -> None:
        self._file = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def note(self, event: str) -> None:
        os.write(self._file, f"{time.monotonic_ns()} {event}\n".encode())


class Vss:
    """VSS behind qemu-ga. The errors have the texts of qga/vss-win32/requester.cpp."""

    def __init__(self, scenario: Scenario, log: Log) -> None:
        self._scenario = scenario
        self._log = log
        self._lock = threading.Lock()
        self._held: int | None = None
        self._timer: threading.Timer | None = None
        self.counts_as_frozen = False
        """Whether qemu-ga reports `frozen`: from the freeze until it is told to thaw, even if VSS has released before."""

    def freeze(self) -> int:
        self._log.note("preparing")
        time.sleep(self._scenario.prepare_s)
        if self._scenario.refusal:
            self._log.note("refused")
            raise RefusedError(self._scenario.refusal)
        with self._lock:
            held = os.open(HELD, os.O_RDONLY)
            fcntl.ioctl(held, FIFREEZE, 0)
            self._held = held
            self._log.note("frozen")
            self._timer = threading.Timer(self._scenario.hold_s, self.let_go, ["expired"])
            self._timer.start()
        self.counts_as_frozen = True
        time.sleep(self._scenario.late_s)
        return self._scenario.frozen

    def thaw(self) -> int:
        if not self.counts_as_frozen:
            return 0
        self.counts_as_frozen = False
        if not self.let_go("thawed"):
            raise RefusedError("couldn't hold writes: fsfreeze is limited up to 10 seconds: ")
        return self._scenario.thawed

    def let_go(self, event: str) -> bool:
        """Thaws. Returns whether the filesystem was frozen."""
        with self._lock:
            if self._held is None or self._timer is None:
                return False
            self._timer.cancel()
            self._log.note(event)  # before the thaw, so before the waiting writes end
            fcntl.ioctl(self._held, FITHAW, 0)
            os.close(self._held)
            self._held = None
            return True


class Agent:
    """Runs one command at a time, in order, as qemu-ga does."""

    def __init__(self, vss: Vss) -> None:
        self._vss = vss
        self.ended = False

    def answer(self, line: bytes) -> bytes:
        prefix = b""
        try:
            request = json.loads(line)
            if request["execute"] == "guest-sync-delimited":
                prefix = b"\xff"
            reply = {"return": self._obey(request["execute"], request.get("arguments", {}))}
        except RefusedError as error:
            reply = {"error": {"class": error.kind, "desc": str(error)}}
        except (ValueError, KeyError, TypeError, AttributeError):
            reply = {"error": {"class": "GenericError", "desc": "JSON parse error, invalid request"}}
        return prefix + json.dumps(reply).encode() + b"\n"

    def _obey(self, command: str, arguments: dict[str, Any]) -> Any:
        if command not in ALLOWED_WHILE_FROZEN + ALLOWED_ELSE:
            raise RefusedError(f"The command {command} has not been found", "CommandNotFound")
        if self._vss.counts_as_frozen and command not in ALLOWED_WHILE_FROZEN:
            reason = "the agent is in frozen state"
            raise RefusedError(f"Command {command} has been disabled: {reason}", "CommandNotFound")
        match command:
            case "guest-sync" | "guest-sync-delimited":
                return arguments["id"]
            case "guest-info":
                return {"version": "107.0.1", "supported_commands": self._commands()}
            case "guest-get-osinfo":
                return {
                    "id": "mswindows",
                    "name": "Microsoft Windows",
                    "pretty-name": "Windows Server 2022 Standard",
                    "version": "Microsoft Windows Server 2022",
                    "version-id": "2022",
                    "variant": "server",
                    "variant-id": "server",
                    "machine": "x86_64",
                    "kernel-release": "20348",
                    "kernel-version": "10.0",
                }
            case "guest-get-fsinfo":
                return [
                    {"name": f"\\\\?\\Volume{{{number}}}\\", "mountpoint": mountpoint, "type": fstype, "disk": []}
                    for number, (mountpoint, fstype) in enumerate(
                        [("C:\\", "NTFS"), ("D:\\", "NTFS"), ("System Reserved", "NTFS"), ("E:\\", "UDF")]
                    )
                ]
            case "guest-fsfreeze-freeze":
                return self._vss.freeze()
            case "guest-fsfreeze-thaw":
                return self._vss.thaw()
            case "guest-fsfreeze-status":
                return "frozen" if self._vss.counts_as_frozen else "thawed"
        self.ended = command == END
        return {}

    def _commands(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "enabled": name in ALLOWED_WHILE_FROZEN or not self._vss.counts_as_frozen, "success-response": True}
            for name in ALLOWED_WHILE_FROZEN + ALLOWED_ELSE
        ]


def serve(port: int, agent: Agent, deadline: float) -> None:
    """Answers until the deadline, or until the command END."""
    poller = select.poll()
    poller.register(port, select.POLLIN)
    unread = b""
    while not agent.ended and time.monotonic() < deadline:
        poller.poll(200)
        try:
            data = os.read(port, 65536)
        except BlockingIOError:
            continue
        if not data:  # no host is connected
            time.sleep(0.02)
        unread += data
        while b"\n" in unread and not agent.ended:
            line, _, unread = unread.partition(b"\n")
            if line := line.strip(b"\xff\r "):
                send(port, agent.answer(line))


def send(port: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(port, data) :]
        except BlockingIOError:
            time.sleep(0.005)
        except OSError:  # the host has closed its end
            return


def take_port() -> int:
    """Opens the port as soon as the real agent has closed it."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return os.open(PORT, os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main(scenario: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    log = Log()
    vss = Vss(SCENARIOS[scenario], log)
    time.sleep(0.5)  # the real agent must first answer the command that started this program
    # The programs that the real agent started, this one included, must outlive it.
    extra = Path("/run/systemd/system/qemu-guest-agent.service.d")
    extra.mkdir(parents=True, exist_ok=True)
    (extra / "lab.conf").write_text("[Service]\nKillMode=process\n")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["systemctl", "stop", "qemu-guest-agent"], check=True)
    try:
        port = take_port()
        try:
            log.note("ready")
            serve(port, Agent(vss), deadline)
        finally:
            os.close(port)
    finally:
        with contextlib.suppress(OSError):
            vss.let_go("ended")
        subprocess.run(["systemctl", "start", "qemu-guest-agent"], check=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
