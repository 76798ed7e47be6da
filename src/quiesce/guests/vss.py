"""Windows guests: VSS, asked through qemu-guest-agent, in the place of an agent of our own.

qemu-ga is a VSS requester: in `guest-fsfreeze-freeze` it gathers the writers, has them prepare and freeze, and has VSS flush
and hold all fixed volumes; in `guest-fsfreeze-thaw` it learns how that ended (qga/vss-win32/requester.cpp). It names no
writer and keeps no deadline. VSS does: it lets go of the volumes after 10 s, and the thaw then fails.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from quiesce.guests.port import GuestRefusedError
from quiesce.hypervisor import domain_xml, qemu_agent
from quiesce.hypervisor.qemu_agent import QemuAgent
from quiesce.hypervisor.vm import Facts, Vm
from quiesce.model.errors import AgentError, QuiesceError
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Filesystem, FreezeState, Outcome, WriterReport
from quiesce.wire.messages import (
    PORT_NAME,
    Frozen,
    Held,
    Inventory,
    Released,
    State,
    Status,
    Thawed,
)

VSS_PREPARE_S = 120.0
"""Longest freeze. Applications run for most of it: qemu-ga gathers the writers and has them prepare, for which it knows no
limit, and then waits up to 60 s for all to stand still."""
VSS_HOLD_S = 10.0
"""VSS's own bound on holding volumes; nobody can change it."""
VSS_COMPLETE_S = 60.0
"""Longest thaw. VSS lets go at its beginning; then it completes its backup."""
LET_GO_S = 60.0
"""How long an agent that does not answer is asked to thaw."""
ANSWER_S = 5.0
PAUSE_S = 0.2
MAX_VOLUMES = 64
"""VSS takes no more in one set."""

_NEEDED = frozenset({"guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-fsfreeze-status"})
_NOT_FIXED = ("CDFS", "UDF")
_HOLD_EXPIRED = re.compile("hold writes|80042314")
"""VSS_E_HOLD_WRITES_TIMEOUT as qemu-ga tells it."""


def is_windows(vm: Vm, facts: Facts) -> bool:
    """Whether VSS is the way to this guest: it has no port for our agent, and its qemu-guest-agent says that it is Windows.

    Raises AgentError where that agent is frozen, by whomever, and so says nothing.
    """
    port = facts.channels.get(domain_xml.QEMU_AGENT_PORT)
    if PORT_NAME in facts.channels or port is None or not port.connected:
        return False
    agent = QemuAgent(vm)
    try:
        return agent.os_id() == "mswindows"
    except AgentError as error:
        if _is_frozen(agent):
            raise qemu_agent.frozen(vm.name) from error
        return False


def _is_frozen(agent: QemuAgent) -> bool:
    with suppress(AgentError, TimeoutError):
        return agent.freeze_status(ANSWER_S) == "frozen"
    return False


@contextmanager
def windows_guest(vm: Vm) -> Iterator[VssGuest]:
    """VSS of the VM's guest, on a connection of its own: a thaw must not wait for whatever else libvirt does with the VM.
    Leaving it lets go of whatever is held."""
    own = Vm(vm.host.uri, vm.uuid)
    try:
        guest = VssGuest(own.name, QemuAgent(own))
        try:
            yield guest
        finally:
            guest.close()
    finally:
        own.close()


class VssGuest:
    """A quiesce.guests.port.Guest, for one attempt.

    All that VSS does, its levels included, it does in one go, in `freeze`; so `hold` has nothing to do. The thaw is the
    judge: only if it succeeds, with as many volumes as were frozen and in time, have they been held, and `release` tells.
    """

    freezes_first = True
    has_clock = False

    def __init__(self, vm_name: str, agent: QemuAgent) -> None:
        self.extra_window_s = VSS_PREPARE_S + VSS_COMPLETE_S
        self.hold_s = VSS_HOLD_S
        self._vm_name = vm_name
        self._agent = agent
        self._writer = WriterReport("vss", "VSS (Windows)", "", Level.SYSTEM, Grade.HELD)
        self._filesystems: tuple[Filesystem, ...] = ()
        self._may_be_frozen = False
        """By us."""
        self._count = 0
        self._token = ""
        self._began = self._returned = self._thawed = 0.0

    def software(self) -> str:
        return f"qemu-ga {self._agent.version()}"

    def identify(self, _timeout: float) -> Inventory:
        """Raises AgentError, saying what to do, if VSS cannot be had."""
        if _is_frozen(self._agent):
            raise qemu_agent.frozen(self._vm_name)
        missing = _NEEDED - self._agent.enabled()
        if missing:
            raise AgentError(
                f"qemu-guest-agent of {self._vm_name} offers no VSS: it lacks {', '.join(sorted(missing))}",
                hint="in the guest, install the QEMU guest agent with its VSS provider (virtio-win-guest-tools), run it as a"
                " service, and look for the service 'QEMU Guest Agent VSS Provider'",
            )
        self._writer = replace(self._writer, version=self._agent.os_name())
        with suppress(AgentError):
            self._filesystems = tuple(
                Filesystem(
                    volume.mountpoint,
                    volume.fstype,
                    volume.name,
                    FreezeState.SKIPPED if volume.fstype in _NOT_FIXED else FreezeState.FREEZABLE,
                )
                for volume in self._agent.volumes(MAX_VOLUMES)
            )
        return Inventory((self._writer,), self._filesystems)

    def prepare(self, _window_ms: int, _insist: bool, timeout: float) -> Inventory:
        return self.identify(timeout)

    def hold(self, _level: Level, _timeout: float) -> Held:
        return Held((), time.monotonic_ns())

    def freeze(self, timeout: float) -> Frozen:
        """When it returns, all volumes stand still, for at most VSS_HOLD_S. Raises GuestRefusedError with what VSS says."""
        self._may_be_frozen = True
        self._began = time.monotonic()
        try:
            self._count = self._agent.fsfreeze(min(timeout, VSS_PREPARE_S))
        except AgentError as error:
            raise self._refusal(error.message) from error
        except TimeoutError as error:
            raise AgentError(f"VSS of {self._vm_name} did not freeze in time: {error}") from error
        self._returned = time.monotonic()
        if self._count <= 0:
            raise self._refusal("VSS has found no volume to hold")
        self._token = secrets.token_hex(16)
        return Frozen(self._token, self._marked(FreezeState.FROZEN))

    def thaw(self, timeout: float) -> Thawed:
        """Raises AgentError where there is no judgement, or if the guest does not confirm that it has let go."""
        started = time.monotonic()
        held_s = started - self._returned
        trouble = self._judged(held_s, timeout)
        self._thawed = time.monotonic()
        if trouble:
            self._let_go()
        self._may_be_frozen = False
        reason, outcome = trouble or (
            f"VSS held {self._count} volumes; which applications took part, and how they start, is by its account alone",
            Outcome.STABLE,
        )
        self._writer = replace(
            self._writer,
            grade=Grade.CRASH if trouble else Grade.HELD,
            reason=reason,
            outcome=outcome,
            warnings=self._left_out(),
            timings_us={
                "freeze": round((self._returned - self._began) * 1e6),
                "held": round(held_s * 1e6),
                "thaw": round((self._thawed - started) * 1e6),
            },
        )
        return Thawed(self._token, trouble is None, self._marked(FreezeState.THAWED), self._window_us())

    def _judged(self, held_s: float, timeout: float) -> tuple[str, Outcome] | None:
        """Thaws; what was wrong, None if nothing."""
        late = held_s >= VSS_HOLD_S
        try:
            count = self._agent.fsthaw(timeout)
        except AgentError as error:
            late = late or _HOLD_EXPIRED.search(error.message) is not None
            return error.message, Outcome.TIMEOUT if late else Outcome.RETRYABLE
        except TimeoutError as error:
            raise AgentError(f"VSS of {self._vm_name} did not say in time whether it held: {error}") from error
        if late:
            return f"it was told to let go after {held_s:.1f} s; VSS holds for {VSS_HOLD_S:g} s", Outcome.TIMEOUT
        if count != self._count:
            return f"VSS froze {self._count} volumes and thawed {count}", Outcome.INCONSISTENT
        return None

    def release(self, _level: Level, _timeout: float) -> Released:
        return Released((self._writer,), time.monotonic_ns(), self._window_us())

    def post_checkpoint(self, _kept: bool, _timeout: float) -> Status:
        """VSS has told its writers in the thaw."""
        return Status(State.IDLE)

    def abort(self, _timeout: float) -> Status:
        """Takes up to LET_GO_S: a freeze that was given up on may still come. Raises AgentError if the guest does not confirm
        that it has let go."""
        if self._may_be_frozen:
            self._let_go()
        return Status(State.IDLE)

    def close(self) -> None:
        """Never raises."""
        with suppress(QuiesceError, TimeoutError):
            self.abort(ANSWER_S)

    def _let_go(self) -> None:
        """Thaws until the guest says that nothing is frozen. qemu-ga does one thing at a time, in order: what it says, it says
        after whatever it was told before."""
        self._may_be_frozen = False  # or else all that can be done about it has been done
        deadline = time.monotonic() + LET_GO_S
        while True:
            try:
                self._agent.fsthaw(ANSWER_S)
                if (said := self._agent.freeze_status(ANSWER_S)) == "thawed":
                    return
            except (AgentError, TimeoutError) as error:
                said = str(error)
            if time.monotonic() >= deadline or not self._agent.connected():
                raise AgentError(
                    f"{self._vm_name} does not confirm that it has thawed: {said}; VSS lets go by itself after"
                    f" {VSS_HOLD_S:g} s, qemu-guest-agent does not: virsh domfsthaw {self._vm_name}"
                )
            time.sleep(PAUSE_S)

    def _refusal(self, text: str) -> GuestRefusedError:
        writer = replace(self._writer, grade=Grade.CRASH, reason=text, outcome=Outcome.RETRYABLE)
        return GuestRefusedError(self._vm_name, text, (writer,))

    def _marked(self, state: FreezeState) -> tuple[Filesystem, ...]:
        """VSS holds all fixed volumes or none, and says how many; if the guest did not list them, that is all there is."""
        if not self._filesystems:
            return (Filesystem("all volumes", "", "", state, f"{self._count}, says VSS"),)
        return tuple(replace(item, state=state) if item.state is FreezeState.FREEZABLE else item for item in self._filesystems)

    def _left_out(self) -> tuple[str, ...]:
        listed = sum(item.state is FreezeState.FREEZABLE for item in self._filesystems)
        if listed <= self._count:
            return ()
        return (f"VSS held {self._count} of {listed} volumes; it leaves out what Windows takes for removable",)

    def _window_us(self) -> int:
        """An upper bound: VSS does not tell when within its freeze it began to hold."""
        return round((self._thawed - self._began) * 1e6)
