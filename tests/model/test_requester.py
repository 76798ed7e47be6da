"""wire/requester.py: the host believes nothing it did not check, whatever comes out of the guest."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.standstill import within
from quiesce.model.grades import Level
from quiesce.wire import messages
from quiesce.wire.framing import MAX_LINE, ProtocolError
from quiesce.wire.messages import RESULTS, Op
from quiesce.wire.requester import AgentRefusedError, Greeting, Requester
from quiesce.wire.schema import from_wire, to_wire
from tests.strategies import JSON, almost, examples, of

CALLS = {
    Op.HELLO: lambda requester: requester.hello("test", 1),
    Op.IDENTIFY: lambda requester: requester.identify(1),
    Op.PREPARE: lambda requester: requester.prepare(messages.Prepare(1000, insist=True), 1),
    Op.HOLD: lambda requester: requester.hold(Level.SYSTEM, 1),
    Op.FREEZE: lambda requester: requester.freeze(1),
    Op.THAW: lambda requester: requester.thaw(1),
    Op.RELEASE: lambda requester: requester.release(Level.SYSTEM, 1),
    Op.POST_CHECKPOINT: lambda requester: requester.post_checkpoint(True, 1),
    Op.ABORT: lambda requester: requester.abort(1),
    Op.STATUS: lambda requester: requester.status(1),
    Op.VERIFY: lambda requester: requester.verify("id", 1),
}
LATER = [op for op in Op if op is not Op.HELLO]
EXPECTED = (TimeoutError, ConnectionError, ProtocolError, AgentRefusedError)
IDLE = {"state": "idle"}


class Stranger:
    """A transport that answers each request with what `answer` makes of it, in pieces; silent after that."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._pieces: list[bytes] = []
        self.requests: list[dict[str, Any]] = []

    def send(self, data: bytes, _timeout: float) -> None:
        if data.strip():
            self.requests.append(json.loads(data))
            self._pieces += self._answer(self.requests[-1])

    def receive(self, _timeout: float) -> bytes:
        if not self._pieces:
            raise TimeoutError
        return self._pieces.pop(0)

    def close(self) -> None:
        self._pieces.clear()


def from_one(stranger: Stranger) -> Requester:
    """A requester whose first request has the number 1, so that a stranger can hit or miss it on purpose."""
    requester = Requester(stranger)
    requester._next_id = 1
    return requester


def line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def greeting(nonce: str, **changes: Any) -> dict[str, Any]:
    reply = messages.HelloReply(nonce, messages.PROTOCOL, "1.0", ("freeze",), "boot", "3.9")
    return {**to_wire(reply), **changes}


def says(value: Any) -> Stranger:
    """Answers every request rightly with this result."""
    return Stranger(lambda request: [line({"id": request["id"], "result": value})])


@given(st.sampled_from(Op), st.lists(st.binary(max_size=60) | JSON.map(line), max_size=6))
def test_arbitrary_bytes_end_in_one_of_four_ways(op, pieces):
    """Broken: a guest could crash the host's program, or have rubbish taken for an answer."""
    with pytest.raises(EXPECTED):
        CALLS[op](Requester(Stranger(lambda _: pieces)))


@given(st.sampled_from(Op), st.data())
@examples(200)
def test_only_a_wellformed_answer_to_this_request_is_accepted(op, data):
    """Broken: an answer of the wrong shape, to another request or for another step would be believed."""
    reply = {"id": 1, "result": to_wire(data.draw(of(RESULTS[data.draw(st.sampled_from([op, op, *Op]))])))}
    lines = [line(item) for item in data.draw(st.lists(st.just(reply) | almost(reply), max_size=3))]
    stream = b"".join(lines)
    cut = data.draw(st.integers(0, len(stream)))
    try:
        answer = CALLS[op](from_one(Stranger(lambda _: [stream[:cut], stream[cut:]])))
    except EXPECTED:
        return
    assert op is not Op.HELLO  # nobody here knows the nonce
    assert isinstance(answer, RESULTS[op])
    first = json.loads(lines[0])
    assert first["id"] == 1
    assert answer == from_wire(RESULTS[op], first["result"])


_JUNK = st.one_of(
    st.binary(max_size=40),
    JSON.map(json.dumps).map(str.encode),
    of(messages.HelloReply).map(lambda reply: json.dumps({"id": 1, "result": to_wire(reply)}).encode()),
    st.integers(2, 9).map(lambda number: json.dumps({"id": number, "error": {"code": "failed", "message": "old"}}).encode()),
    st.integers(0, 9).map(lambda number: json.dumps({"id": number, "result": IDLE}).encode()),
    st.just(b"x" * (MAX_LINE + 1)),
)


@given(st.lists(_JUNK, max_size=5), st.integers(1, 50))
def test_a_handshake_passes_over_what_an_earlier_conversation_left(junk, size):
    """Broken: after a host died in mid-conversation, no other could talk to the guest."""

    def answer(request: dict[str, Any]) -> list[bytes]:
        stream = b"".join(item + b"\n" for item in junk)
        stream += line({"id": request["id"], "result": greeting(request["args"]["nonce"])})
        return [stream[start : start + 5000 * size] for start in range(0, len(stream), 5000 * size)]

    assert from_one(Stranger(answer)).hello("test", 1) == Greeting("1.0", ("freeze",), "boot")


@pytest.mark.parametrize("op", LATER)
@pytest.mark.parametrize(
    "reply",
    [
        {"id": 0, "result": IDLE},
        {"id": 2, "result": IDLE},
        {"id": -1, "result": IDLE},
        {"id": "1", "result": IDLE},
        {"id": 1.0, "result": IDLE},
        {"id": True, "result": IDLE},
        {"id": None, "result": IDLE},
        {"result": IDLE},
        {"id": 2, "error": {"code": "failed", "message": "no"}},
        [],
    ],
    ids=repr,
)
def test_after_the_handshake_a_stray_line_ends_the_conversation(op, reply):
    """Broken: the host would go on in a conversation it is out of step with."""
    with pytest.raises(ProtocolError):
        CALLS[op](from_one(Stranger(lambda _: [line(reply)])))


@pytest.mark.parametrize("nonce", ["", "0" * 32])
def test_an_earlier_handshake_is_not_taken_for_this_one(nonce):
    """Broken: the host would talk to an agent that is not there any more."""
    with pytest.raises(TimeoutError):
        Requester(says(greeting(nonce))).hello("test", 1)


def test_another_protocol_is_refused():
    """Broken: steps would be asked of an agent that means something else by them."""
    protocol = messages.PROTOCOL + 1
    stranger = Stranger(
        lambda request: [line({"id": request["id"], "result": greeting(request["args"]["nonce"], protocol=protocol)})]
    )
    with pytest.raises(ProtocolError, match="protocol"):
        Requester(stranger).hello("test", 1)


def test_a_refusal_left_by_an_earlier_conversation_is_not_taken_for_ours():
    """Broken: a host that starts after another died would fail with the error that the other one earned."""
    earlier = Stranger(lambda _: [])
    with pytest.raises(TimeoutError):
        Requester(earlier).hello("earlier", 1)
    left = {"id": earlier.requests[0]["id"], "error": {"code": "wrong-state", "message": "old"}}

    def answer(request: dict[str, Any]) -> list[bytes]:
        return [line(left), line({"id": request["id"], "result": greeting(request["args"]["nonce"])})]

    assert Requester(Stranger(answer)).hello("test", 1).boot_id == "boot"


@pytest.mark.parametrize("op", Op)
def test_silence_is_a_timeout(op):
    """Broken: the host would wait for a dead agent for ever."""
    with pytest.raises(TimeoutError):
        CALLS[op](Requester(Stranger(lambda _: [])))


@pytest.mark.parametrize("flood", [b"x" * 65536, line({"id": -1, "result": {}}) * 2000], ids=["no newline", "stale lines"])
def test_an_endless_flood_costs_neither_time_nor_memory(flood):
    """Broken: a guest could keep the host busy, or fill its memory, for as long as it likes."""

    class Flood(Stranger):
        def receive(self, _timeout: float) -> bytes:
            return flood

    tracemalloc.start()
    try:
        with within(3), pytest.raises(TimeoutError):
            Requester(Flood(lambda _: [])).hello("test", 0.2)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_an_overlong_line_is_refused_after_the_handshake():
    """Broken: the host would wait for the rest of an answer that was thrown away."""
    with pytest.raises(ProtocolError, match="more than"):
        Requester(Stranger(lambda _: [b"x" * (MAX_LINE + 1), b"\n"])).status(1)


def test_a_lost_connection_is_said_so():
    """Broken: a guest that is gone would look like one that misbehaves."""

    class Gone(Stranger):
        def receive(self, _timeout: float) -> bytes:
            raise ConnectionResetError

    with pytest.raises(ConnectionError):
        Requester(Gone(lambda _: [])).status(1)


def test_a_refusal_names_its_writers_and_the_conversation_goes_on():
    """Broken: the user would not learn which application stands in the way; or an abort could not follow a refusal."""
    writer = {"id": "postgresql:17/main", "application": "postgresql", "version": "17", "level": "back-end", "grade": "refused"}
    replies = [
        {"error": {"code": "refused", "message": "busy", "writers": [writer]}},
        {"result": IDLE},
    ]
    requester = Requester(Stranger(lambda request: [line({"id": request["id"], **replies.pop(0)})]))
    with pytest.raises(AgentRefusedError, match="busy") as refusal:
        requester.hold(Level.BACK_END, 1)
    assert [found.id for found in refusal.value.error.writers] == ["postgresql:17/main"]
    assert requester.abort(1) == messages.Status(messages.State.IDLE)


def test_requests_carry_the_attempts_token_their_own_number_and_their_deadline():
    """Broken: the agent would refuse the steps of its own attempt, or not know when to give up."""
    stranger = says(IDLE)
    requester, other = Requester(stranger), Requester(says(IDLE))
    requester.status(0.5)
    requester.abort(2)
    first, second = (request["id"] for request in stranger.requests)
    assert second == first + 1
    assert [request["deadline_ms"] for request in stranger.requests] == [500, 2000]
    assert {request["token"] for request in stranger.requests} == {requester.token}
    assert len(requester.token) == 32
    assert requester.token != other.token
