"""A qemu-guest-agent with a Windows behind it that follows a script."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from quiesce.guests import vss as vss_module
from quiesce.hypervisor.qemu_agent import GuestVolume
from quiesce.model.errors import AgentError

VOLUMES = [GuestVolume("C:\\", "NTFS", "c"), GuestVolume("D:\\", "NTFS", "d"), GuestVolume("System Reserved", "NTFS", "r")]
DVD = GuestVolume("E:\\", "UDF", "e")


def answer(value: int) -> Callable[[], int]:
    return lambda: value


three = answer(3)


def refuse(text: str) -> Callable[[], int]:
    def fail() -> int:
        raise AgentError(text)

    return fail


def silence() -> int:
    raise TimeoutError("guest agent didn't respond to command within '60' seconds")


@dataclass
class Guest:
    """A QemuAgent with a Windows behind it. It answers a freeze, and the first thaw after it, as told; later
    thaws truthfully."""

    on_freeze: Callable[[], int] = three
    on_thaw: Callable[[], int] = three
    os: str = "mswindows"
    held: bool = False
    counts_as_frozen: bool = False
    busy_until: float = 0
    """Until then it answers nothing."""
    here: bool = True
    vss: bool = True
    listed: list[GuestVolume] = field(default_factory=lambda: [*VOLUMES, DVD])
    diary: list[str] = field(default_factory=list)

    def connected(self) -> bool:
        return self.here

    def version(self) -> str:
        return "107.0.1"

    def enabled(self) -> set[str]:
        return {f"guest-fsfreeze-{name}" for name in ("freeze", "thaw", "status")} if self.vss else {"guest-ping"}

    def os_id(self) -> str:
        if self.counts_as_frozen:
            raise AgentError("web1 does not allow guest-get-osinfo")
        return self.os

    def os_name(self) -> str:
        return "Windows Server 2022 Standard"

    def volumes(self, most: int) -> list[GuestVolume]:
        if not self.listed:
            raise AgentError("guest-get-fsinfo in web1: no")
        return self.listed[:most]

    def fsfreeze(self, timeout: float) -> int:
        assert 0 < timeout <= vss_module.VSS_PREPARE_S
        self.diary.append("freeze")
        self.held = self.counts_as_frozen = True
        try:
            return self.on_freeze()
        except AgentError:
            self.held = self.counts_as_frozen = False  # as qemu-ga does
            raise

    def fsthaw(self, timeout: float) -> int:
        self._answer_in_time(timeout)
        self.diary.append("thaw")
        was, self.held, self.counts_as_frozen = self.counts_as_frozen, False, False
        if not was:
            return 0
        how, self.on_thaw = self.on_thaw, answer(0)
        return how()

    def freeze_status(self, timeout: float) -> str:
        self._answer_in_time(timeout)
        return "frozen" if self.counts_as_frozen else "thawed"

    def _answer_in_time(self, timeout: float) -> None:
        left = self.busy_until - time.monotonic()
        if left > 0:
            time.sleep(min(left, timeout, 0.05))
            raise TimeoutError("guest agent didn't respond to synchronization within '5' seconds")
