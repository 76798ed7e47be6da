"""agent/conversation.py, with an attempt that only takes note: nothing is held, nothing is frozen."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.standstill import wait_for
from quiesce.agent import conversation, deadman, inventory
from quiesce.agent.attempt import AttemptError
from quiesce.agent.conversation import Conversation
from quiesce.model.grades import Level
from quiesce.wire import framing, messages
from quiesce.wire.messages import ErrorCode, Op, State
from tests.strategies import JSON, almost, examples

TOKEN, OTHER = "a" * 32, "b" * 32
ARGS = {
    Op.VERIFY: {"trial": "another"},
    Op.HELLO: {"nonce": "n", "protocol": 1, "software": "test"},
    Op.PREPARE: {"window_ms": 1000, "insist": True},
    **{op: {"level": "back-end"} for op in (Op.HOLD, Op.RELEASE)},
    Op.POST_CHECKPOINT: {"kept": True},
}


class Recorder:
    """Stands for Attempt: keeps the states, and a list of what was asked of it."""

    made: list[Recorder] = []  # noqa: RUF012 - cleared by every test
    failure: dict[str, Exception] = {}  # noqa: RUF012
    left: int | None = None

    def __init__(self, token: str, _asked: messages.Prepare) -> None:
        self.token = token
        self.state = State.IDLE
        self.calls: list[str] = []
        Recorder.made.append(self)

    @property
    def live(self) -> bool:
        return "abort" not in self.calls

    def left_ms(self) -> int | None:
        return Recorder.left if self.state is not State.PREPARED else None

    def _do(self, what: str, state: State) -> None:
        self.calls.append(what)
        if what in Recorder.failure:
            raise Recorder.failure[what]
        self.state = state

    def prepare(self, _found: object, _deadline_ns: int) -> messages.Inventory:
        self._do("prepare", State.PREPARED)
        return messages.Inventory((), ())

    def hold(self, _level: Level, _deadline_ns: int) -> messages.Held:
        self._do("hold", State.HELD)
        return messages.Held((), 1)

    def freeze(self, _deadline_ns: int) -> messages.Frozen:
        self._do("freeze", State.FROZEN)
        return messages.Frozen("f", ())

    def thaw(self) -> messages.Thawed:
        self._do("thaw", State.THAWED if "hold" in self.calls else State.RELEASED)
        return messages.Thawed("f", True, (), 1)

    def release(self, _level: Level) -> messages.Released:
        self._do("release", State.RELEASED)
        return messages.Released((), 1, 1)

    def post_checkpoint(self, _kept: bool) -> None:
        self._do("post-checkpoint", State.RELEASED)

    def abort(self) -> None:
        self.calls.append("abort")
        self.state = State.IDLE


@pytest.fixture(scope="module", autouse=True)
def not_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test of this file looks for databases, freezes a filesystem or reads this machine's rescue note."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation, "Attempt", Recorder)
        patch.setattr(inventory, "find_filesystems", list)
        patch.setattr(deadman, "RESCUE_NOTE", str(tmp_path_factory.mktemp("run") / "last-rescue"))
        yield


def fresh(port: int = -1) -> Conversation:
    Recorder.made, Recorder.failure, Recorder.left = [], {}, None
    return Conversation(port, list)


def request(op: Op, token: str = TOKEN, **changes: object) -> dict:
    return {"id": 7, "op": op.value, "token": token, "deadline_ms": 1000, "args": ARGS.get(op, {}), **changes}


def ask(talk: Conversation, message: object) -> dict:
    return talk.answer(json.dumps(message).encode())


def code(answer: dict) -> str | None:
    return answer["error"]["code"] if "error" in answer else None


# -- one line, whatever it holds


def _is_an_answer(answer: dict) -> None:
    assert set(answer) in ({"id", "result"}, {"id", "error"})
    assert framing.from_line(framing.to_line(answer).rstrip(b"\n")) == answer


@given(st.none() | st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_line_gets_an_answer_and_starts_nothing(line):
    """Broken: a byte from the host could end the agent, or begin an attempt nobody asked for."""
    talk = fresh()
    answer = talk.answer(line)
    _is_an_answer(answer)
    assert code(answer) == "bad-request"
    assert Recorder.made == []


@given(st.data())
@examples(250)
def test_almost_right_requests_get_an_answer_and_no_attempt_is_without_a_token(data):
    """Broken: a request with one thing wrong could end the agent, or start an attempt that anybody could end."""
    talk = fresh()
    for _ in range(data.draw(st.integers(1, 4))):
        good = request(data.draw(st.sampled_from(Op)), data.draw(st.sampled_from([TOKEN, "", OTHER])))
        _is_an_answer(ask(talk, data.draw(st.just(good) | almost(good))))
    assert all(attempt.token for attempt in Recorder.made)
    assert sum(attempt.live for attempt in Recorder.made) <= 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"token": ""}, "bad-request"),
        ({"args": {"window_ms": 0, "insist": True}}, "bad-request"),
        ({"args": {"window_ms": -1, "insist": True}}, "bad-request"),
        ({"args": {"window_ms": messages.MAX_WINDOW_MS + 1, "insist": True}}, "bad-request"),
        ({"args": {"window_ms": 1000}}, "bad-request"),
        ({}, None),
        ({"args": {"window_ms": messages.MAX_WINDOW_MS, "insist": False}}, None),
    ],
    ids=repr,
)
def test_an_attempt_needs_a_token_and_a_sane_window(change, expected):
    """Broken: a guest could be asked to stand still without bounds, or for a host that cannot be told from another."""
    assert code(ask(fresh(), request(Op.PREPARE, **change))) == expected
    assert bool(Recorder.made) == (expected is None)


def test_an_error_keeps_the_requests_number_where_it_can_be_read():
    """Broken: the host would not know which of its requests was refused."""
    assert ask(fresh(), {"id": 41, "op": "nonsense"})["id"] == 41
    assert fresh().answer(b"\xff")["id"] == 0
    assert fresh().answer(None)["id"] == 0


# -- any sequence of requests, against the order the protocol promises

FOLLOWS = {
    Op.PREPARE: {"idle"},
    Op.HOLD: {"prepared", "held"},
    Op.FREEZE: {"prepared", "held"},
    Op.THAW: {"frozen"},
    Op.RELEASE: {"held", "thawed"},
    Op.POST_CHECKPOINT: {"released"},
    Op.ABORT: {"idle", "prepared", "held", "frozen", "thawed", "released"},
    Op.STATUS: {"idle", "prepared", "held", "frozen", "thawed", "released"},
    Op.HELLO: {"idle", "prepared", "held", "frozen", "thawed", "released"},
    Op.IDENTIFY: {"idle"},
    Op.VERIFY: {"idle"},
}
LEADS_TO = {
    Op.PREPARE: "prepared",
    Op.HOLD: "held",
    Op.FREEZE: "frozen",
    Op.THAW: "thawed",
    Op.RELEASE: "released",
    Op.POST_CHECKPOINT: "idle",
    Op.ABORT: "idle",
    Op.HELLO: "idle",  # a host that greets has just come: whose attempt it was, is gone
}
_USUAL = [Op.PREPARE, Op.HOLD, Op.FREEZE, Op.THAW, Op.RELEASE, Op.POST_CHECKPOINT]


@given(
    st.lists(st.tuples(st.sampled_from(_USUAL + list(Op)), st.sampled_from([TOKEN, TOKEN, TOKEN, OTHER, ""])), max_size=12)
    | st.permutations([(op, TOKEN) for op in _USUAL])
    | st.lists(st.sampled_from(list(Op)), max_size=3).map(lambda ops: [(op, TOKEN) for op in _USUAL[:4] + ops])
)
@examples(250)
def test_every_sequence_keeps_to_the_order_and_the_token(steps):
    """Broken: a step could come out of order or from somebody else, or a refusal could end the attempt under way."""
    talk = fresh()
    state, owner, held = "idle", None, False
    for op, token in steps:
        guarded = op not in (Op.STATUS, Op.HELLO, Op.IDENTIFY)
        if owner and guarded and token != owner:
            expected = "wrong-token"
        elif state not in FOLLOWS[op]:
            expected = "wrong-state"
        elif op is Op.PREPARE and not token:
            expected = "bad-request"
        else:
            expected = "refused" if op is Op.VERIFY else None  # this machine is no copy
        under_way = [attempt for attempt in Recorder.made if attempt.live]
        answer = ask(talk, request(op, token))
        assert code(answer) == expected
        if expected:
            assert [attempt for attempt in Recorder.made if attempt.live] == under_way
        elif op in LEADS_TO:
            state = LEADS_TO[op]
            held = op is Op.HOLD or (held and op is not Op.PREPARE)
            owner = token if op is Op.PREPARE else owner
            if op is Op.THAW and not held:
                state = "released"
            if state == "idle":
                owner = None
        assert [attempt.token for attempt in Recorder.made if attempt.live] == ([owner] if owner else [])
        assert ask(talk, request(Op.STATUS, ""))["result"]["state"] == state


@pytest.mark.parametrize("step", [Op.PREPARE, Op.HOLD, Op.FREEZE, Op.THAW, Op.RELEASE])
@pytest.mark.parametrize(
    ("failure", "expected"),
    [(AttemptError(ErrorCode.REFUSED, "no"), "refused"), (AttemptError(ErrorCode.DEADLINE, "late"), "deadline"),
     (OSError(5, "disk"), "failed"), (KeyError("x"), "failed"), (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), "failed")],
    ids=repr,
)  # fmt: skip
def test_a_step_that_fails_is_answered_and_releases_the_guest(step, failure, expected):
    """Broken: after a failed step the applications would stand until the deadline."""
    talk = fresh()
    for op in _USUAL[: _USUAL.index(step)]:
        assert code(ask(talk, request(op))) is None
    Recorder.failure = {step.value: failure}
    assert code(ask(talk, request(step))) == expected
    assert Recorder.made[0].calls[-2:] == [step.value, "abort"]
    assert ask(talk, request(Op.STATUS))["result"]["state"] == "idle"


# -- the stream


@contextlib.contextmanager
def connected(*, left: int | None = None) -> Iterator[tuple[socket.socket, threading.Thread, list[BaseException]]]:
    """A conversation running on one end of a real socket pair; the test is the host at the other."""
    host, guest = socket.socketpair()
    guest.setblocking(False)
    host.settimeout(10)
    talk = fresh(guest.fileno())
    Recorder.left = left
    raised: list[BaseException] = []

    def run() -> None:
        try:
            talk.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield host, thread, raised
    finally:
        host.close()
        thread.join(10)
        guest.close()
        assert not thread.is_alive()


def send(host: socket.socket, *requests: dict) -> None:
    host.sendall(b"".join(json.dumps(item).encode() + b"\n" for item in requests))


def answers(host: socket.socket, count: int) -> list[dict]:
    data = b""
    while data.count(b"\n") < count:
        data += host.recv(65536)
    return [json.loads(line) for line in data.splitlines()]


def test_a_request_in_pieces_and_several_at_once_are_answered_in_order():
    """Broken: what the virtio port cuts or joins would be lost."""
    with connected() as (host, _, raised):
        for byte in json.dumps(request(Op.STATUS, id=1)).encode() + b"\n":
            host.sendall(bytes([byte]))
        assert [answer["id"] for answer in answers(host, 1)] == [1]
        send(host, request(Op.STATUS, id=2), {"id": 3}, request(Op.HELLO, id=4))
        assert [(answer["id"], code(answer)) for answer in answers(host, 3)] == [(2, None), (3, "bad-request"), (4, None)]
    assert raised == []


def test_an_overlong_line_is_answered_and_the_conversation_goes_on():
    """Broken: one line too long would make the guest unreachable."""
    with connected() as (host, _, _raised):
        host.sendall(b"x" * (framing.MAX_LINE + 1) + b"\n")
        assert code(answers(host, 1)[0]) == "bad-request"
        send(host, request(Op.STATUS))
        assert code(answers(host, 1)[0]) is None


@pytest.mark.parametrize("upto", [1, 2, 3, 4])
def test_hanging_up_releases_the_guest(upto):
    """Broken: a host that dies in the window would leave the applications standing until the deadline."""
    with connected() as (host, thread, raised):
        send(host, *(request(op) for op in _USUAL[:upto]))
        assert [code(answer) for answer in answers(host, upto)] == [None] * upto
        host.close()
        thread.join(10)
        assert not thread.is_alive()
        assert Recorder.made[0].calls == [op.value for op in _USUAL[:upto]] + ["abort"]
    assert raised == []


@pytest.mark.parametrize("step", [Op.PREPARE, Op.HOLD, Op.FREEZE])
def test_hanging_up_in_the_middle_of_a_step_releases_the_guest(step, monkeypatch):
    """Broken: its answer would be tried to be written for ever, with the guest as the step left it and a processor spinning."""
    write = os.write
    with connected() as (host, thread, raised):
        done = _USUAL[: _USUAL.index(step)]
        send(host, *(request(op) for op in done))
        answers(host, len(done))

        def full(descriptor: int, data: bytes) -> int:
            """As the virtio port's driver has it: without a host there is no room, and no error either."""
            if threading.current_thread() is thread and host.fileno() < 0:
                raise BlockingIOError
            return write(descriptor, data)

        def hanging_up(*arguments: object) -> object:
            host.close()
            return real(*arguments)

        real = getattr(Recorder, step.value)
        monkeypatch.setattr(os, "write", full)
        monkeypatch.setattr(Recorder, step.value, hanging_up)
        send(host, request(step))
        thread.join(10)
        assert not thread.is_alive()
        assert Recorder.made[0].calls == [*(op.value for op in done), step.value, "abort"]
    assert raised == []


def test_a_host_that_comes_when_another_hung_up_unseen_finds_the_guest_released():
    """Broken: who was interrupted and tries again would be refused for what the first attempt left."""
    with connected() as (host, _, _raised):
        send(host, request(Op.PREPARE), request(Op.HELLO, ""), request(Op.PREPARE, OTHER))
        assert [code(answer) for answer in answers(host, 3)] == [None] * 3
        assert [attempt.live for attempt in Recorder.made] == [False, True]


def test_the_deadline_releases_the_guest_while_the_host_is_silent():
    """Broken: a host that hangs would keep the guest standing beyond its deadline."""
    with connected(left=50) as (host, _, _raised):
        send(host, request(Op.PREPARE), request(Op.HOLD))
        assert len(answers(host, 2)) == 2
        attempt = Recorder.made[0]
        wait_for(lambda: not attempt.live, 5)
        assert attempt.calls == ["prepare", "hold", "abort"]
        send(host, request(Op.FREEZE), request(Op.STATUS), request(Op.PREPARE, OTHER), request(Op.THAW, OTHER))
        assert [code(answer) for answer in answers(host, 4)] == ["deadline", None, None, "wrong-state"]


def test_a_host_that_does_not_read_is_taken_for_gone(monkeypatch):
    """Broken: a stuck host would hold the agent, and what it holds, for ever."""
    monkeypatch.setattr(conversation, "WRITE_TIMEOUT_MS", 100)
    with connected() as (host, thread, raised):
        send(host, request(Op.PREPARE))
        answers(host, 1)
        host.settimeout(0.5)
        with contextlib.suppress(OSError):
            while thread.is_alive():
                send(host, *[request(Op.STATUS)] * 100)
        thread.join(10)
        assert [type(error) for error in raised] == [TimeoutError]
        assert not Recorder.made[0].live


def test_a_refused_conversation_leaves_no_descriptor_behind():
    """Broken: an agent that is talked to for months would run out of descriptors."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        with connected() as (host, _, _raised):
            send(host, request(Op.HELLO))
            answers(host, 1)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
