"""hypervisor/qemu_agent.py: the commands that VSS needs, what a guest may answer, and libvirt's errors told apart."""

from __future__ import annotations

import json
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from quiesce.hypervisor import qemu_agent
from quiesce.hypervisor.domain_xml import QEMU_AGENT_PORT
from quiesce.hypervisor.qemu_agent import QemuAgent
from quiesce.model.errors import AgentError, HypervisorError, QuiesceError


class Asked:
    """libvirt's side of qemuAgentCommand."""

    name = "web1"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reply: Any = {}
        """What the guest returns; a string is the whole of what it sends."""
        self.state = "connected"
        self.heard: list[tuple[dict[str, Any], int]] = []
        self.domain = self
        monkeypatch.setattr(libvirt_qemu, "qemuAgentCommand", self._command)

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        target = f"<target type='virtio' name='{QEMU_AGENT_PORT}' state='{self.state}'/>"
        return f"<domain><devices><channel>{target}</channel></devices></domain>"

    def fail(self, code: int, message: str) -> None:
        error = libvirt.libvirtError("failed")
        error.err = (code, 0, message, 0, "", None, None, 0, 0)
        self.reply = error

    def _command(self, _domain: Any, request: str, timeout: int, _flags: int) -> str:
        self.heard.append((json.loads(request), timeout))
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply if isinstance(self.reply, str) else json.dumps({"return": self.reply})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def test_each_freezing_command_has_its_own_time(asked):
    """Broken: libvirt would cut VSS short, or wait for ever for a guest that hangs."""
    agent = QemuAgent(asked)
    asked.reply = 3
    assert (agent.fsfreeze(59.2), agent.fsthaw(0.1)) == (3, 3)
    asked.reply = {"id": "mswindows", "pretty-name": "Windows\x1b[2J"}
    assert agent.os_id() == "mswindows"
    assert "\x1b" not in agent.os_name()
    assert [(request["execute"], timeout) for request, timeout in asked.heard[:2]] == [
        ("guest-fsfreeze-freeze", 60),
        ("guest-fsfreeze-thaw", 1),
    ]


def test_what_it_says_of_itself_is_bounded(asked):
    """Broken: a guest could fill the host's memory or screen."""
    agent = QemuAgent(asked)
    asked.reply = [{"mountpoint": "C:\\" * 5000, "type": 7, "name": "c"}, "nonsense", *({} for _ in range(500))]
    first, *rest = agent.volumes(10)
    assert (len(first.mountpoint), first.fstype, first.name) == (qemu_agent.MAX_TEXT, "", "c")
    assert len(rest) == 9
    asked.reply = {"version": "9.2", "supported_commands": [{"name": "a", "enabled": True}, {"name": "b", "enabled": False}, 3]}
    assert (agent.version(), agent.enabled()) == ("9.2", {"a"})


@pytest.mark.parametrize("reply", ['{"return": true}', '{"return": "3"}', '{"return": null}', "{}", "[3]", "{"])
def test_a_number_that_is_none_is_refused(reply, asked):
    """Broken: what a guest sends in the place of a count would be compared with one."""
    asked.reply = reply
    with pytest.raises(AgentError, match="gave an answer to guest-fsfreeze-thaw that is not valid"):
        QemuAgent(asked).fsthaw(1)


@pytest.mark.parametrize(
    ("code", "message", "state", "kind", "text"),
    [
        (86, "Guest agent is not responding: within '5' seconds", "connected", TimeoutError, "not responding"),
        (112, "guest agent command timed out: within '60' seconds", "connected", TimeoutError, "timed out"),
        (68, "cannot acquire state change lock", "connected", TimeoutError, "state change lock"),
        (86, "QEMU guest agent is not connected", "disconnected", AgentError, "does not answer"),
        (74, "QEMU guest agent is not configured", "connected", AgentError, "does not answer"),
        (1, "unable to execute QEMU agent command 'guest-fsfreeze-thaw': couldn't hold writes: limited up to 10 seconds: ",
         "connected", AgentError, "guest-fsfreeze-thaw failed in web1: couldn't hold writes: limited up to 10 seconds"),
        (113, "unable to execute QEMU agent command 'guest-fsfreeze-thaw': Command guest-fsfreeze-thaw has been disabled: the"
         " agent is in frozen state", "connected", AgentError, "web1 is frozen"),
        (1, "unable to execute QEMU agent command 'guest-fsfreeze-thaw': Command guest-fsfreeze-thaw has been disabled",
         "connected", AgentError, "does not allow guest-fsfreeze-thaw"),
        (38, "client socket is closed", "connected", HypervisorError, "client socket is closed"),
    ],
)  # fmt: skip
def test_what_libvirt_says_is_told_apart(code, message, state, kind, text, asked):
    """Broken: a guest that may still freeze would be taken for one that refused, or VSS's verdict for a fault of libvirt."""
    asked.fail(code, message)
    asked.state = state
    with pytest.raises((QuiesceError, TimeoutError), match=text) as error:
        QemuAgent(asked).fsthaw(1)
    assert type(error.value) is kind
    if kind is TimeoutError:
        with pytest.raises(AgentError, match="does not answer"):
            QemuAgent(asked).os_id()
