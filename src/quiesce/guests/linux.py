"""A Linux guest, through quiesce's own agent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from quiesce import __version__
from quiesce.guests.port import GuestRefusedError
from quiesce.hypervisor.channel import ChannelTransport
from quiesce.hypervisor.vm import Facts, Vm
from quiesce.model.errors import AgentError
from quiesce.model.grades import Level
from quiesce.wire.framing import ProtocolError
from quiesce.wire.messages import PORT_NAME, Frozen, Held, Inventory, Prepare, Released, Status, Thawed, Verified
from quiesce.wire.requester import AgentRefusedError, Greeting, Requester, Transport

HELLO_TIMEOUT_S = 30.0
NEEDED = frozenset({"freeze", "dead-man", "post-checkpoint"})


def require_agent_port(facts: Facts) -> None:
    """Raises AgentError if the VM has no port for the agent, or if nothing in the guest listens on it."""
    port = facts.channels.get(PORT_NAME)
    if port is None:
        raise AgentError(f"{facts.name} has no quiesce agent", hint=f"install it: quiesce guest install {facts.name}")
    if not port.connected:
        raise AgentError(
            f"the quiesce agent of {facts.name} is not running",
            hint="in the guest: systemctl status quiesce-agent; or install it again: quiesce guest install " + facts.name,
        )


@contextmanager
def linux_guest(vm: Vm) -> Iterator[LinuxGuest]:
    """A conversation with the VM's agent. The end of the block closes it, and the agent releases all that is held.

    Raises AgentError if there is no agent, if it is too old, or if its answers are not valid.
    """
    guest = LinuxGuest(vm.name, ChannelTransport(vm))
    try:
        guest.greet()
        yield guest
    finally:
        guest.close()


class LinuxGuest:
    """A quiesce.guests.port.Guest."""

    freezes_first = False
    extra_window_s = 0.0
    hold_s = math.inf
    has_clock = True

    def __init__(self, vm_name: str, transport: Transport) -> None:
        self._vm_name = vm_name
        self._requester = Requester(transport)
        self._greeting: Greeting | None = None

    def greet(self) -> None:
        """To be called first. Raises AgentError."""
        with self._translated():
            try:
                greeting = self._requester.hello(__version__, HELLO_TIMEOUT_S)
            except (ProtocolError, AgentRefusedError) as error:
                raise AgentError(
                    f"the agent of {self._vm_name} does not fit this quiesce ({__version__}): {error}",
                    hint=f"bring it up to date: quiesce guest install {self._vm_name}",
                ) from error
        missing = NEEDED - set(greeting.capabilities)
        if missing:
            lacks = ", ".join(sorted(missing))
            raise AgentError(
                f"the agent of {self._vm_name} (version {greeting.software}) is too old: it lacks {lacks}",
                hint=f"bring it up to date: quiesce guest install {self._vm_name}",
            )
        self._greeting = greeting

    def software(self) -> str:
        return self._greeting.software if self._greeting else ""

    def identify(self, timeout: float) -> Inventory:
        with self._translated():
            return self._requester.identify(timeout)

    def prepare(self, asked: Prepare, timeout: float) -> Inventory:
        with self._translated():
            return self._requester.prepare(asked, timeout)

    def hold(self, level: Level, timeout: float) -> Held:
        with self._translated():
            return self._requester.hold(level, timeout)

    def freeze(self, timeout: float) -> Frozen:
        with self._translated():
            return self._requester.freeze(timeout)

    def thaw(self, timeout: float) -> Thawed:
        with self._translated():
            return self._requester.thaw(timeout)

    def release(self, level: Level, timeout: float) -> Released:
        with self._translated():
            return self._requester.release(level, timeout)

    def post_checkpoint(self, kept: bool, timeout: float) -> Status:
        with self._translated():
            return self._requester.post_checkpoint(kept, timeout)

    def abort(self, timeout: float) -> Status:
        with self._translated():
            return self._requester.abort(timeout)

    def verify(self, trial: str, timeout: float) -> Verified:
        if self._greeting and "verify" not in self._greeting.capabilities:
            raise AgentError(
                f"the agent in the checkpoint (version {self._greeting.software}) is too old to tell how it started",
                hint=f"bring the VM's agent up to date, and take another checkpoint: quiesce guest install {self._vm_name}",
            )
        with self._translated():
            return self._requester.verify(trial, timeout)

    def status(self, timeout: float) -> Status:
        with self._translated():
            return self._requester.status(timeout)

    def close(self) -> None:
        self._requester.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns the errors of a conversation into AgentError or GuestRefusedError."""
        try:
            yield
        except TimeoutError as error:
            raise AgentError(
                f"the agent of {self._vm_name} does not answer", hint="is the guest overloaded or frozen?"
            ) from error
        except ConnectionError as error:
            raise AgentError(
                f"the connection to the agent of {self._vm_name} was lost: {error}",
                hint="does the VM still run? in the guest: systemctl status quiesce-agent",
            ) from error
        except ProtocolError as error:
            raise AgentError(
                f"the agent of {self._vm_name} sent a message that is not valid: {error}",
                hint=f"if it comes again, install the agent again: quiesce guest install {self._vm_name}",
            ) from error
        except AgentRefusedError as error:
            raise GuestRefusedError(self._vm_name, error.error.message, error.error.writers) from error
