"""Windows guests: VSS, through qemu-guest-agent, instead of an agent of our own.

qemu-ga is a VSS requester: in `guest-fsfreeze-freeze` it gathers the writers, has them prepare and freeze, and has VSS flush
and hold all fixed volumes; in `guest-fsfreeze-thaw` it learns how that ended (qga/vss-win32/requester.cpp). It does not name
the writers, and it has no deadline. VSS has one: it releases the volumes after 10 s, and the thaw then fails.
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
from quiesce.model.starts import Start
from quiesce.wire.messages import (
    PORT_NAME,
    Frozen,
    Held,
    Inventory,
    Prepare,
    Released,
    State,
    Status,
    Thawed,
    Verified,
)

VSS_PREPARE_S = 120.0
"""Longest freeze, in seconds. Applications run for most of it: qemu-ga gathers the writers and has them prepare, without a
limit, and then waits up to 60 s until VSS holds all volumes."""
VSS_HOLD_S = 10.0
"""VSS's own limit for holding volumes, in seconds. It cannot be changed."""
VSS_COMPLETE_S = 60.0
"""Longest thaw, in seconds. VSS releases the volumes at its beginning, and then completes its backup."""
VSS_STARTS_S = 240.0
"""How long a guest that has just come up may need until VSS holds its volumes, in seconds: Windows starts some services two
minutes after the others."""
VSS_PAUSE_S = 5.0
LET_GO_S = 60.0
"""How long we ask an agent to thaw that does not answer, in seconds."""
ANSWER_S = 5.0
PAUSE_S = 0.2
MAX_VOLUMES = 64
"""Most volumes in one of VSS's snapshot sets."""

_NEEDED = frozenset({"guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-fsfreeze-status"})
_NOT_FIXED = ("CDFS", "UDF")
_HOLD_EXPIRED = re.compile("hold writes|80042314")
"""VSS_E_HOLD_WRITES_TIMEOUT in qemu-ga's message."""


def is_windows(vm: Vm, facts: Facts) -> bool:
    """Whether to use VSS for this guest: the VM has no port for our agent, and qemu-guest-agent reports Windows.

    Raises AgentError if qemu-guest-agent is frozen: it then does not tell the operating system.
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
    """VSS of the VM's guest, through a libvirt connection of its own, so that a thaw need not wait for other calls on the VM.
    The end of the block releases all that is held."""
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

    VSS holds all levels within `freeze`, so `hold` does nothing. The thaw tells whether VSS held the volumes to the end: it did
    if the thaw succeeds in time, with as many volumes as were frozen. `release` reports that.
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
        """Whether our freeze may be in effect."""
        self._count = 0
        self._token = ""
        self._began = self._returned = self._thawed = 0.0

    def software(self) -> str:
        return f"qemu-ga {self._agent.version()}"

    def identify(self, _timeout: float) -> Inventory:
        """VSS as the only writer, and the guest's volumes. Raises AgentError, with a hint, if VSS is not available."""
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

    def prepare(self, _asked: Prepare, timeout: float) -> Inventory:
        return self.identify(timeout)

    def hold(self, _level: Level, _timeout: float) -> Held:
        return Held((), time.monotonic_ns())

    def freeze(self, timeout: float) -> Frozen:
        """When it returns, VSS holds all volumes, for at most VSS_HOLD_S. Raises GuestRefusedError with VSS's message."""
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
            raise self._refusal("VSS found no volume to hold")
        self._token = secrets.token_hex(16)
        return Frozen(self._token, self._marked(FreezeState.FROZEN))

    def thaw(self, timeout: float) -> Thawed:
        """Raises AgentError if the guest does not tell how the hold ended, or does not confirm that it has thawed."""
        started = time.monotonic()
        held_s = started - self._returned
        trouble = self._judged(held_s, timeout)
        self._thawed = time.monotonic()
        if trouble:
            self._let_go()
        self._may_be_frozen = False
        reason, outcome = trouble or (
            f"VSS held {self._count} volumes; only VSS knows which applications took part, and how they will start",
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
        """Thaws. Returns what was wrong with the hold; None: nothing."""
        late = held_s >= VSS_HOLD_S
        try:
            count = self._agent.fsthaw(timeout)
        except AgentError as error:
            late = late or _HOLD_EXPIRED.search(error.message) is not None
            return error.message, Outcome.TIMEOUT if late else Outcome.RETRYABLE
        except TimeoutError as error:
            raise AgentError(f"VSS of {self._vm_name} did not say in time whether it held: {error}") from error
        if late:
            return f"the thaw came after {held_s:.1f} s; VSS holds for {VSS_HOLD_S:g} s", Outcome.TIMEOUT
        if count != self._count:
            return f"VSS froze {self._count} volumes and thawed {count}", Outcome.INCONSISTENT
        return None

    def release(self, _level: Level, _timeout: float) -> Released:
        return Released((self._writer,), time.monotonic_ns(), self._window_us())

    def post_checkpoint(self, _kept: bool, _timeout: float) -> Status:
        """Does nothing: VSS told its writers during the thaw."""
        return Status(State.IDLE)

    def verify(self, _trial: str, timeout: float) -> Verified:
        """That the guest came up, and that VSS holds all volumes and lets them go: nobody tells how an application started.
        Waits up to VSS_STARTS_S until it does. Raises AgentError if VSS is not available then."""
        deadline = time.monotonic() + min(timeout, VSS_STARTS_S)
        while True:
            last = time.monotonic() >= deadline
            try:
                failure = self._why_not_held(timeout)
            except AgentError:
                if last:
                    raise
            else:
                if last or failure is None:
                    break
            time.sleep(VSS_PAUSE_S)
        checks = () if failure else ("the guest answers, and VSS held all its volumes",)
        return Verified((Start("vss", self._writer.application, self._writer.version, failure=failure, checks=checks),))

    def _why_not_held(self, timeout: float) -> str | None:
        """In the words of VSS; None: it did. Raises AgentError if VSS says nothing."""
        try:
            self.identify(timeout)
            self.freeze(timeout)
            return None if self.thaw(timeout).unbroken else self._writer.reason
        except AgentError as error:
            self.abort(timeout)
            if isinstance(error, GuestRefusedError):
                return error.reason
            raise

    def abort(self, _timeout: float) -> Status:
        """Takes up to LET_GO_S: a freeze that had no answer in time may still take effect. Raises AgentError if the guest does
        not confirm that it has thawed."""
        if self._may_be_frozen:
            self._let_go()
        return Status(State.IDLE)

    def close(self) -> None:
        """Never raises."""
        with suppress(QuiesceError, TimeoutError):
            self.abort(ANSWER_S)

    def _let_go(self) -> None:
        """Thaws again and again until the guest reports that nothing is frozen. qemu-ga runs its commands one after the other,
        so its report comes after all earlier commands. Raises AgentError after LET_GO_S."""
        self._may_be_frozen = False  # if the thaw fails, nothing more can be done
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
                    f"{self._vm_name} does not confirm that it has thawed: {said}; VSS releases the volumes by itself after"
                    f" {VSS_HOLD_S:g} s, but qemu-guest-agent stays frozen: virsh domfsthaw {self._vm_name}"
                )
            time.sleep(PAUSE_S)

    def _refusal(self, text: str) -> GuestRefusedError:
        writer = replace(self._writer, grade=Grade.CRASH, reason=text, outcome=Outcome.RETRYABLE)
        return GuestRefusedError(self._vm_name, text, (writer,))

    def _marked(self, state: FreezeState) -> tuple[Filesystem, ...]:
        """The guest's volumes with this state. VSS holds all fixed volumes or none, and tells their number; if the guest did
        not list its volumes, one entry stands for all."""
        if not self._filesystems:
            return (Filesystem("all volumes", "", "", state, f"{self._count}, says VSS"),)
        return tuple(replace(item, state=state) if item.state is FreezeState.FREEZABLE else item for item in self._filesystems)

    def _left_out(self) -> tuple[str, ...]:
        listed = sum(item.state is FreezeState.FREEZABLE for item in self._filesystems)
        if listed <= self._count:
            return ()
        return (f"VSS held {self._count} of {listed} volumes; it leaves out volumes that Windows takes for removable",)

    def _window_us(self) -> int:
        """An upper bound of the time of the hold: VSS does not tell when, during the freeze, it began to hold."""
        return round((self._thawed - self._began) * 1e6)
