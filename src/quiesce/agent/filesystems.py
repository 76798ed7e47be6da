"""Freezes the filesystems of this machine in stacking order, and thaws them.

FIFREEZE freezes a superblock, wherever and however often it is mounted, and each is frozen once here. So EBUSY means that
somebody else froze it. That is an error, because nobody knows when they will thaw it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Optional

from quiesce.agent import linux
from quiesce.agent.deadman import DeadMan
from quiesce.agent.inventory import disks_of, mount_id, mount_points, noted_skip, open_mounted, report_of, sayable, why_stuck
from quiesce.agent.mounts import Found, find_filesystems
from quiesce.agent.undos import Undo
from quiesce.model.reports import Filesystem, FreezeState

RCU_EXPEDITED = "/sys/kernel/rcu_expedited"
HIDDEN = "hidden below another mount; cannot be reached"


class FreezeError(Exception):
    """A filesystem could not be frozen. Those that were frozen before it are thawed again."""


class Freezer:
    """Freezes and thaws the filesystems found when it was made. Holds a descriptor on each until `close`."""

    def __init__(self) -> None:
        self._mounts = _MountWatch()  # before the list is made, so that no mount is missed in between
        self._items: list[_Item] = []
        self.stuck: list[str] = []
        """Why filesystems cannot be frozen, known before a freeze is tried."""
        listed = find_filesystems()
        self._disks = disks_of(listed)
        for found in listed:
            item = _Item(found, FreezeState.SKIPPED if found.skip else FreezeState.FREEZABLE, noted_skip(found))
            if not found.skip:
                item.descriptor = open_mounted(found)
                if item.descriptor is None:
                    item.state, item.reason = FreezeState.SKIPPED, HIDDEN
                elif stuck := why_stuck(found):
                    self.stuck.append(stuck)
            self._items.append(item)
        self._freezable = [item for item in self._items if item.descriptor is not None]
        self.rcu = _rcu()
        """The undo that resets rcu_expedited; None on a kernel without it. The dead-man has it at index 0."""
        self._rcu_expedited = False

    @property
    def descriptors(self) -> list[int]:
        return [item.descriptor for item in self._freezable if item.descriptor is not None]

    @property
    def recorded(self) -> list[dict[str, Any]]:
        """What identifies each filesystem of `descriptors` to the next agent, as JSON values."""
        return [_recorded(item.found) for item in self._freezable]

    @property
    def frozen(self) -> bool:
        return any(item.state is FreezeState.FROZEN for item in self._freezable)

    def report(self) -> tuple[Filesystem, ...]:
        return tuple(
            replace(
                report_of(item.found, item.state, item.reason, item.freeze_us), disks=self._disks.get(item.found.mount.device)
            )
            for item in self._items
        )

    def flush(self) -> None:
        """Writes out dirty pages while the applications run: first the mass of them, then those dirtied meanwhile."""
        for _ in range(2):
            for descriptor in self.descriptors:
                linux.syncfs(descriptor)

    def freeze(self, deadline_ns: int, deadman: DeadMan) -> None:
        """Freezes all. Raises FreezeError, after thawing what it froze, if one is refused or the deadline passes."""
        appeared = self._appeared()
        if appeared:
            raise FreezeError(f"{appeared} was mounted since the preparation; try again")
        hidden = next((item.found.mount.mountpoint for item in self._items if item.reason == HIDDEN), "")
        if hidden:
            raise FreezeError(f"{hidden} is hidden below another mount and cannot be frozen; unmount it")
        self._expedite_rcu(deadman)
        try:
            for index, item in enumerate(self._freezable):
                if time.monotonic_ns() >= deadline_ns:
                    raise FreezeError(f"the deadline passed before {item.found.mount.mountpoint} was frozen")
                self._freeze_one(index, item, deadman)
        except FreezeError:
            self.thaw(deadman)
            raise

    def thaw(self, deadman: DeadMan) -> bool:
        """Thaws what `freeze` froze, `/` first. Returns False if somebody else had thawed one of them before.

        Never raises; a filesystem that cannot be thawed is left to the dead-man.
        """
        unbroken = True
        for index, item in reversed(list(enumerate(self._freezable))):
            if item.state is not FreezeState.FROZEN or item.descriptor is None:
                continue
            try:
                fcntl.ioctl(item.descriptor, linux.FITHAW, 0)
            except OSError as error:
                unbroken = False
                if error.errno != errno.EINVAL:  # EINVAL: not frozen, so somebody else thawed it
                    continue
            item.state = FreezeState.THAWED
            _ignoring_death(deadman.thawed, index)
        self._unexpedite_rcu(deadman)
        return unbroken and not self._appeared()

    def thaw_anybodys(self) -> None:
        """Thaws every filesystem, whoever froze it. Never raises."""
        for item in reversed(self._freezable):
            if item.descriptor is not None:
                try:
                    fcntl.ioctl(item.descriptor, linux.FITHAW, 0)
                except OSError:
                    pass  # it was not frozen

    def mount_points(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The filesystems that have these paths, as `report` names them."""
        return mount_points([item.found for item in self._items], paths)

    def why_not_frozen(self, paths: Iterable[str]) -> str:
        """Why a freeze does not hold the files below one of these paths, or the empty string."""
        sure = {FreezeState.FREEZABLE, FreezeState.FROZEN, FreezeState.THAWED}
        states = {mount.id: item for item in self._items for mount in item.found.mounts}
        for path in paths:
            try:
                mount = mount_id(path)
            except OSError as error:
                return f"its files in {path} cannot be reached: {error.strerror}"
            item = states.get(mount)
            if item is None or item.state not in sure:
                return f"its files in {path} are on a filesystem that is not frozen" + (f": {item.reason}" if item else "")
        return ""

    def _appeared(self) -> str:
        """The mount point of a filesystem that was mounted after this object was made, or the empty string."""
        if not self._mounts.changed():
            return ""
        known = {item.found.mount.device for item in self._items if not item.found.skip}
        new = (item for item in find_filesystems() if not item.skip and item.mount.device not in known)
        return next((item.mount.mountpoint for item in new), "")

    def close(self) -> None:
        self._mounts.close()
        for item in self._freezable:
            if item.descriptor is not None:
                os.close(item.descriptor)
                item.descriptor = None
        self._freezable = []
        if self.rcu and self.rcu.descriptor is not None:
            os.close(self.rcu.descriptor)
            self.rcu = None

    def _freeze_one(self, index: int, item: _Item, deadman: DeadMan) -> None:
        assert item.descriptor is not None  # every freezable item has one
        mountpoint = item.found.mount.mountpoint
        started = time.monotonic_ns()
        try:
            deadman.freezing(index)
            fcntl.ioctl(item.descriptor, linux.FIFREEZE, 0)
        except OSError as error:
            deadman.not_ours(index)
            if error.errno == errno.EBUSY:
                raise FreezeError(f"{mountpoint} is already frozen by somebody else") from None
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
                raise FreezeError(f"{mountpoint} cannot be frozen: {error.strerror}") from None
            linux.syncfs(item.descriptor)
            item.state = FreezeState.FLUSHED
            item.reason = f"{item.found.mount.fstype} cannot be frozen; it was flushed"
        except Exception as error:  # noqa: BLE001 - the dead-man is gone, and without it there is no window
            raise FreezeError(f"the dead-man: {error}") from None
        else:
            item.state = FreezeState.FROZEN
        item.freeze_us = (time.monotonic_ns() - started) // 1000

    def _expedite_rcu(self, deadman: DeadMan) -> None:
        """FIFREEZE waits for three RCU grace periods: measured, 60 ms of a write gap of 85 ms; expedited, 12 to 17 ms."""
        if self.rcu is None or self.rcu.descriptor is None:
            return  # a kernel without this setting freezes more slowly
        try:
            _ignoring_death(deadman.doing, 0)
            self._rcu_expedited = True
            os.pwrite(self.rcu.descriptor, b"1", 0)
        except OSError:
            pass

    def _unexpedite_rcu(self, deadman: DeadMan) -> None:
        if not self._rcu_expedited or self.rcu is None or self.rcu.descriptor is None:
            return
        try:
            os.pwrite(self.rcu.descriptor, self.rcu.data, 0)
        except OSError:
            return
        self._rcu_expedited = False
        _ignoring_death(deadman.undone, 0)


def thaw_recorded(recorded: Iterable[dict[str, Any]]) -> list[str]:
    """Thaws filesystems that an earlier agent recorded, `/` first. Returns the mount points of those that were frozen. Never
    raises for a filesystem that is gone."""
    wanted = list(recorded)
    thawed = []
    for found in reversed([found for found in find_filesystems() if not found.skip and _recorded(found) in wanted]):
        descriptor = open_mounted(found)
        if descriptor is None:
            continue
        try:
            fcntl.ioctl(descriptor, linux.FITHAW, 0)
            thawed.append(found.mount.mountpoint)
        except OSError:
            pass  # it was not frozen
        finally:
            os.close(descriptor)
    return thawed


def _recorded(found: Found) -> dict[str, Any]:
    mount = found.mount
    return {"device": list(mount.device), "type": mount.fstype, "source": sayable(mount.source)}


def _rcu() -> Optional[Undo]:
    try:
        descriptor = os.open(RCU_EXPEDITED, os.O_RDWR | os.O_CLOEXEC)
        return Undo(descriptor, os.pread(descriptor, 20, 0).strip(), path=RCU_EXPEDITED)
    except OSError:
        return None


@dataclass
class _Item:
    found: Found
    state: FreezeState
    reason: Optional[str] = None
    descriptor: Optional[int] = None
    freeze_us: Optional[int] = None


class _MountWatch:
    """Tells whether anything was mounted or unmounted since it was last asked; proc(5), mountinfo and poll."""

    def __init__(self) -> None:
        self._file = open("/proc/self/mountinfo", "rb")  # noqa: SIM115 - kept until close
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)
        self.changed()

    def changed(self) -> bool:
        return bool(self._poll.poll(0))

    def close(self) -> None:
        self._file.close()


def _ignoring_death(tell: object, *arguments: int) -> None:
    """For the way out of the window, where the agent goes on even if the dead-man is gone."""
    try:
        tell(*arguments)  # type: ignore[operator]
    except Exception:  # noqa: BLE001
        pass
