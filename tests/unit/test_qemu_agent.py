"""hypervisor/qemu_agent.py: the commands that VSS needs, what a guest may answer, and libvirt's errors told apart."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import libvirt
import libvirt_qemu
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.hypervisor import agent_answers
from quiesce.hypervisor.domain_xml import QEMU_AGENT_PORT
from quiesce.hypervisor.qemu_agent import QemuAgent
from quiesce.model.errors import AgentError, HypervisorError, QuiesceError
from tests.strategies import JSON, almost, examples


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
    asked.reply = [{"mountpoint": "C:\\" * 5000, "type": "NTFS", "name": "c", "used-bytes": 7}] * 20
    first, *rest = agent.volumes(10)
    assert (len(first.mountpoint), first.fstype, first.name) == (agent_answers.MAX_TEXT, "NTFS", "c")
    assert len(rest) == 9
    asked.reply = {"version": "9.2", "supported_commands": [{"name": "a", "enabled": True}, {"name": "b", "enabled": False}]}
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


# -- a hostile agent

CALLS: dict[str, Callable[[QemuAgent], object]] = {
    "guest-info": lambda agent: (agent.version(), agent.enabled()),
    "guest-get-osinfo": lambda agent: (agent.os_id(), agent.os_name()),
    "guest-get-fsinfo": lambda agent: agent.volumes(64),
    "guest-file-open": lambda agent: agent.write_file("/run/x", b"x"),
    "guest-file-write": lambda agent: agent.write_file("/run/x", b"x" * 7),
    "guest-file-close": lambda agent: agent.write_file("/run/x", b""),
    "guest-exec": lambda agent: agent.run("/bin/true", timeout=0.2),
    "guest-exec-status": lambda agent: agent.run("/bin/true", timeout=0.2),
    "guest-fsfreeze-freeze": lambda agent: agent.fsfreeze(1),
    "guest-fsfreeze-thaw": lambda agent: agent.fsthaw(1),
    "guest-fsfreeze-status": lambda agent: agent.freeze_status(1),
}
PROPER: dict[str, Any] = {
    "guest-info": {"version": "9.2", "supported_commands": [{"name": "guest-info", "enabled": True, "success-response": True}]},
    "guest-get-osinfo": {"id": "debian", "pretty-name": "Debian", "kernel-release": "6.1"},
    "guest-get-fsinfo": [{"mountpoint": "/", "type": "ext4", "name": "vda1", "disk": []}],
    "guest-file-open": 1000,
    "guest-file-write": {"count": 7, "eof": False},
    "guest-file-close": {},
    "guest-exec": {"pid": 77},
    "guest-exec-status": {"exited": True, "exitcode": 0, "out-data": base64.b64encode(b"fine").decode()},
    "guest-fsfreeze-freeze": 2,
    "guest-fsfreeze-thaw": 2,
    "guest-fsfreeze-status": "thawed",
}
HOSTILE = [
    "", "null", "[]", "7", '"x"', "{}", '{"return"', '{"error": 1}', "[" * 100_000, '{"return":' * 100_000,
    '{"return": ' + "9" * 5000 + "}", '{"return": NaN}', '{"return": 1e999}', '{"return": "\\ud800\\u202e"}',
    *(json.dumps({"return": value}) for value in (None, True, -1, 2**70, 1.5, "x" * 10_000, [], [[]], [7], {}, [{}] * 2000)),
]  # fmt: skip


class Answering(Asked):
    """Answers one command as it is told, and the others properly."""

    def __init__(self, patch: pytest.MonkeyPatch, command: str, answer: Any) -> None:
        super().__init__(patch)
        self._special = command, answer

    def _command(self, _domain: Any, request: str, _timeout: int, _flags: int) -> Any:
        command = json.loads(request)["execute"]
        return self._special[1] if command == self._special[0] else json.dumps({"return": PROPER[command]})


def require_typed(command: str, answer: Any) -> None:
    """What a call says of this answer is an error that names the guest, or a value of the right type."""
    with pytest.MonkeyPatch.context() as patch:
        agent = QemuAgent(Answering(patch, command, answer))
        try:
            CALLS[command](agent)
        except AgentError as error:
            assert "web1" in error.message
            assert error.message.isprintable()


def test_every_command_has_a_schema_and_is_tried():
    """Broken: a new command would trust what the guest returns."""
    assert agent_answers.SCHEMAS.keys() == CALLS.keys() == PROPER.keys()
    for command, answer in PROPER.items():
        agent_answers.decoded(command, json.dumps({"return": answer}))


@pytest.mark.parametrize("command", CALLS)
def test_whatever_a_hostile_agent_answers_is_an_error_that_names_the_guest(command):
    """Broken: a guest could end a command on the host in a traceback, or fill its memory."""
    for answer in (*HOSTILE, None, 7, b"{}"):
        require_typed(command, answer)


@given(st.sampled_from(sorted(CALLS)).flatmap(lambda command: st.tuples(st.just(command), almost(PROPER[command]) | JSON)))
@examples(300)
def test_an_answer_that_is_almost_proper_is_read_or_refused(pair):
    """Broken: one missing key, or one value of another type, would end in a traceback."""
    command, value = pair
    require_typed(command, json.dumps({"return": value}))


@given(st.text(max_size=50) | st.binary(max_size=50).map(lambda raw: raw.decode("latin-1")))
def test_output_that_is_not_base64_is_refused(text):
    """Broken: what a command in the guest printed could end in a traceback."""
    require_typed("guest-exec-status", json.dumps({"return": {"exited": True, "out-data": text}}))


def test_an_answer_takes_a_bounded_part_of_the_memory():
    """Broken: a guest could have the host killed for lack of memory."""
    big = base64.b64encode(b"x" * 2**21).decode()
    tracemalloc.start()
    try:
        for answer in (
            json.dumps({"return": {"exited": True, "out-data": big}}),
            "[" * 2**23,
            json.dumps({"return": [{}] * 10**6}),
        ):
            tracemalloc.reset_peak()
            require_typed("guest-exec-status", answer)
            assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_a_file_that_was_written_in_part_is_not_taken_for_whole(asked):
    """Broken: half of the agent would be installed, as root."""
    with pytest.MonkeyPatch.context() as patch:
        agent = QemuAgent(Answering(patch, "guest-file-write", json.dumps({"return": {"count": 3}})))
        with pytest.raises(AgentError, match="not written completely in web1"):
            agent.write_file("/run/x", b"x" * 7)
