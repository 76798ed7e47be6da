"""Stops and continues the processes of a control group, by the kernel's freezer (cgroup v2).

A frozen process reacts to no signal but SIGKILL. Clients of a frozen server wait: new connections in the kernel's backlog,
requests in the socket's buffer. Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Optional

from quiesce.agent.undos import Undo

ROOT = "/sys/fs/cgroup"
POLL_S = 0.001


class CgroupError(Exception):
    """The group could not be frozen."""


class Cgroup:
    """One control group, by its path below the root, as `/system.slice/nginx.service`."""

    def __init__(self, path: str) -> None:
        self.path = os.path.normpath("/" + path.lstrip("/"))
        self._directory = ROOT + self.path
        self._freeze: Optional[int] = None
        self._events: Optional[int] = None
        self.ours = False
        """Whether this object froze it and has not thawed it yet."""
        self._populated = False
        """Whether it had processes when it was frozen."""

    def open(self) -> None:
        """Opens the group's files, so that none has to be opened while filesystems are frozen. Raises OSError."""
        if self._freeze is None:
            self._freeze = os.open(os.path.join(self._directory, "cgroup.freeze"), os.O_RDWR | os.O_CLOEXEC)
            self._events = os.open(os.path.join(self._directory, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)

    @property
    def undo(self) -> Undo:
        return Undo(self._freeze, b"0", path=os.path.join(self._directory, "cgroup.freeze"))

    def asked(self) -> bool:
        """Whether somebody, perhaps this object, has asked the kernel to freeze it."""
        assert self._freeze is not None
        return os.pread(self._freeze, 10, 0).strip() == b"1"

    def frozen(self) -> bool:
        """Whether every process in it stands still. False for a group that is gone, and for one whose processes were all
        killed since it was frozen: the kernel calls it frozen until systemd removes it."""
        events = self._read_events()
        return b"frozen 1" in events and (b"populated 1" in events or not self._populated)

    def freeze(self, deadline_ns: int) -> None:
        """Returns when every process in it stands still. Raises CgroupError if somebody else froze it, and
        TimeoutError, having thawed it again."""
        assert self._freeze is not None
        if self.asked():
            raise CgroupError(f"{self.path} is frozen already, by somebody else")
        self.ours = True
        os.pwrite(self._freeze, b"1", 0)
        while not self.frozen():
            if time.monotonic_ns() >= deadline_ns:
                self.thaw()
                raise TimeoutError(f"processes of {self.path} did not come to a standstill in time")
            time.sleep(POLL_S)
        self._populated = b"populated 1" in self._read_events()

    def thaw(self) -> None:
        """Idempotent; does nothing unless this object froze it. Raises OSError."""
        if self.ours and self._freeze is not None:
            try:
                os.pwrite(self._freeze, b"0", 0)
            except OSError as error:
                # If it is gone, all its processes ended. There may be a new one of its name: a service that started again.
                if error.errno != errno.ENODEV and os.path.exists(self._directory):
                    raise
        self.ours = self._populated = False

    def close(self) -> None:
        for descriptor in (self._freeze, self._events):
            if descriptor is not None:
                os.close(descriptor)
        self._freeze = self._events = None

    def _read_events(self) -> bytes:
        """Empty if the group is gone."""
        assert self._events is not None
        try:
            return os.pread(self._events, 200, 0)
        except OSError:
            return b""
