"""Guests from the host's side: our agent at the end of a conversation, and its installation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from quiesce.guests import linux
from quiesce.guests.linux import NEEDED, linux_guest
from quiesce.guests.port import GuestRefusedError
from quiesce.hypervisor.domain_xml import QEMU_AGENT_PORT, Channel
from quiesce.model.errors import AgentError
from quiesce.operations import guest_install as module
from quiesce.operations.guest_install import COPY, guest_install
from quiesce.wire import messages
from quiesce.wire.messages import PORT_NAME
from tests.unit.fake_host import FakeVm


class Agent:
    """A transport with an agent behind it that can do `capabilities`, and answers what follows the handshake with `then`."""

    def __init__(self, capabilities: set[str], then: dict[str, Any] | None = None) -> None:
        self._capabilities = sorted(capabilities)
        self._then = then
        self._answers: list[bytes] = []
        self.closed = False

    def send(self, data: bytes, _timeout: float) -> None:
        if not data.strip():
            return
        request = json.loads(data)
        if request["op"] == "hello":
            hello = {"protocol": messages.PROTOCOL, "software": "0.1", "boot_id": "b", "python": "3.9"}
            result = {**hello, "capabilities": self._capabilities, "nonce": request["args"]["nonce"]}
            self._answers.append(json.dumps({"id": request["id"], "result": result}).encode() + b"\n")
        elif self._then:
            self._answers.append(json.dumps({"id": request["id"], **self._then}).encode() + b"\n")

    def receive(self, _timeout: float) -> bytes:
        if not self._answers:
            raise TimeoutError
        return self._answers.pop(0)

    def close(self) -> None:
        self.closed = True


def conversation(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(linux, "ChannelTransport", lambda _: agent)
    return linux_guest(SimpleNamespace(name="web1"))  # type: ignore[arg-type]


# -- our agent


@pytest.mark.parametrize("lacking", sorted(NEEDED))
def test_an_agent_that_lacks_something_is_asked_for_nothing(lacking, monkeypatch):
    """Broken: an agent without a dead-man would leave its guest frozen when this host dies."""
    agent = Agent(set(NEEDED) - {lacking})
    with pytest.raises(AgentError, match=f"is too old: it lacks {lacking}"), conversation(agent, monkeypatch):
        pass
    assert agent.closed


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_a_conversation_is_ended_however_it_goes(error, monkeypatch):
    """Broken: the guest would stay held until its own deadline, and the next conversation find the port taken."""
    agent = Agent(set(NEEDED))
    if error is None:
        with conversation(agent, monkeypatch):
            assert not agent.closed
    else:
        with pytest.raises(error), conversation(agent, monkeypatch):
            raise error
    assert agent.closed


def test_a_refusal_is_told_from_an_agent_that_does_not_answer(monkeypatch):
    """Broken: a guest that says no would be waited for, or one that is gone be taken for one that says no."""
    error = {"error": {"code": "refused", "message": "a table is locked"}}
    with conversation(Agent(set(NEEDED), error), monkeypatch) as guest, pytest.raises(GuestRefusedError, match="is locked"):
        guest.identify(1)
    with conversation(Agent(set(NEEDED)), monkeypatch) as guest, pytest.raises(AgentError, match="does not answer") as raised:
        guest.identify(1)
    assert not isinstance(raised.value, GuestRefusedError)


# -- its installation


class QemuAgent:
    """It runs what the installation asks for. `restarting`: how often it is still about to be restarted."""

    def __init__(self, python: str = "3 9", restarting: int = 0) -> None:
        self.python = python
        self.restarting = restarting
        self.files: list[str] = []
        self.ran: list[tuple[str, ...]] = []

    def write_file(self, path: str, _content: bytes) -> None:
        self.files.append(path)

    def run(self, *command: str, timeout: float = 60) -> tuple[int, str]:
        del timeout
        self.ran.append(command)
        if command[0] == "/bin/sh":
            return 0, self.python
        if command[0] == "/bin/systemctl":
            self.restarting -= 1
            return (0 if self.restarting >= 0 else 3), ""
        return 0, "installed"


@pytest.fixture
def installing(world, monkeypatch) -> Iterator[tuple[FakeVm, QemuAgent]]:
    vm, agent = world.vm(), QemuAgent()
    vm.channels = {QEMU_AGENT_PORT: Channel(QEMU_AGENT_PORT, connected=True)}

    def attach(_xml: str) -> None:
        vm.channels = {**vm.channels, PORT_NAME: Channel(PORT_NAME, connected=True)}

    @contextmanager
    def answering(_vm: object) -> Iterator[Any]:
        yield SimpleNamespace(software=lambda: "0.1")

    vm.attach = attach  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "QemuAgent", lambda _: agent)
    monkeypatch.setattr(module.vss, "is_windows", lambda *_: False)
    monkeypatch.setattr(module.linux, "linux_guest", answering)
    monkeypatch.setattr(module.archive, "build", lambda: b"agent")
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    return vm, agent


def test_an_installation_returns_when_nothing_is_restarted_any_more(world, installing):
    """Broken: whoever runs something through qemu-guest-agent next has it ended by the restart."""
    _, agent = installing
    agent.restarting = 3
    assert guest_install(world.context, "web1").version == "0.1"
    assert agent.restarting == -1
    assert agent.files == [COPY]


@pytest.mark.parametrize("python", ["3 8", "", "sh: not found"])
def test_a_guest_that_cannot_run_the_agent_is_left_as_it_is(python, world, installing):
    """Broken: a service would be installed that ends at once, again and again."""
    vm, agent = installing
    agent.python = python
    with pytest.raises(AgentError, match=r"Python 3\.9 or later"):
        guest_install(world.context, "web1")
    assert (agent.files, PORT_NAME in vm.channels) == ([], False)


def test_a_windows_guest_gets_no_agent(world, installing, monkeypatch):
    """Broken: it would get a port that nobody opens, and from then on no checkpoint through VSS."""
    vm, agent = installing
    monkeypatch.setattr(module.vss, "is_windows", lambda *_: True)
    with pytest.raises(AgentError, match="runs Windows"):
        guest_install(world.context, "web1")
    assert (agent.files, agent.ran, PORT_NAME in vm.channels) == ([], [], False)
