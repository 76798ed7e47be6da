"""Talking to the agent in a guest, with errors an administrator can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quiesce import __version__
from quiesce.hypervisor.channel import ChannelTransport
from quiesce.hypervisor.vm import Facts, Vm
from quiesce.model.errors import AgentError
from quiesce.wire.framing import ProtocolError
from quiesce.wire.messages import PORT_NAME
from quiesce.wire.requester import AgentRefusedError, Greeting, Requester

HELLO_TIMEOUT_S = 10.0
IDENTIFY_TIMEOUT_S = 60.0
NEEDED = frozenset({"freeze", "dead-man", "post-checkpoint"})


def require_agent_port(facts: Facts) -> None:
    """Raises AgentError if nothing in the guest listens on the agent's port."""
    port = facts.channels.get(PORT_NAME)
    if port is None:
        raise AgentError(f"{facts.name} has no quiesce agent", hint=f"quiesce guest install {facts.name}")
    if not port.connected:
        raise AgentError(
            f"the quiesce agent of {facts.name} is not running",
            hint="in the guest: systemctl status quiesce-agent; or install it again: quiesce guest install " + facts.name,
        )


@contextmanager
def agent(vm: Vm) -> Iterator[tuple[Requester, Greeting]]:
    """A conversation with the VM's agent. Closing it releases whatever is held.

    Raises AgentError if there is none, it is too old, or it answers with what no agent of ours says.
    """
    requester = Requester(ChannelTransport(vm))
    try:
        with translated(vm.name):
            try:
                greeting = requester.hello(__version__, HELLO_TIMEOUT_S)
            except (ProtocolError, AgentRefusedError) as error:
                raise AgentError(
                    f"the agent of {vm.name} does not fit this quiesce ({__version__}): {error}",
                    hint=f"bring it up to date: quiesce guest install {vm.name}",
                ) from error
            missing = NEEDED - set(greeting.capabilities)
            if missing:
                raise AgentError(
                    f"the agent of {vm.name} (version {greeting.software}) is too old: it lacks {', '.join(sorted(missing))}",
                    hint=f"quiesce guest install {vm.name}",
                )
        yield requester, greeting
    finally:
        requester.close()


@contextmanager
def translated(vm_name: str) -> Iterator[None]:
    """Turns what goes wrong in a conversation into an AgentError."""
    try:
        yield
    except TimeoutError as error:
        raise AgentError(f"the agent of {vm_name} does not answer", hint="is the guest overloaded or frozen?") from error
    except ConnectionError as error:
        raise AgentError(f"the agent of {vm_name} hung up: {error}") from error
    except ProtocolError as error:
        raise AgentError(f"the agent of {vm_name} sent what no agent should: {error}") from error
    except AgentRefusedError as error:
        raise AgentError(f"the agent of {vm_name} refused: {error}") from error
