"""wire/messages.py"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.wire.framing import ProtocolError
from quiesce.wire.messages import ARGUMENTS, RESULTS, Error, ErrorCode, Op, Reply, Request, parse_reply, parse_request
from quiesce.wire.schema import to_wire
from tests.strategies import JSON, almost, examples, of

ERROR = {"code": "refused", "message": "no"}


def _wire(request: Request) -> dict:
    return {
        "id": request.id,
        "op": request.op.value,
        "token": request.token,
        "deadline_ms": request.deadline_ms,
        "args": to_wire(request.args),
    }


@given(st.sampled_from(Op), st.data())
def test_every_request_is_understood_as_it_was_meant(op, data):
    """Broken: the agent would do something else than it was asked."""
    request = Request(data.draw(st.integers(0, 2**31)), op, "token", 500, data.draw(of(ARGUMENTS[op])))
    assert parse_request(_wire(request)) == request


@given(st.sampled_from(Op), st.data())
def test_every_reply_is_understood_as_it_was_meant(op, data):
    """Broken: the host would judge a checkpoint by something the guest did not say."""
    result, error = data.draw(of(RESULTS[op])), data.draw(of(Error))
    assert parse_reply({"id": 3, "result": to_wire(result)}, op) == Reply(3, result=result)
    assert parse_reply({"id": 3, "error": to_wire(error)}, op) == Reply(3, error=error)


@given(st.sampled_from(Op), st.data())
@examples(150)
def test_other_objects_are_a_protocol_error(op, data):
    """Broken: a stranger's object could end the reader, or be taken for a message of other types."""
    good = _wire(Request(1, op, "t", 1, data.draw(of(ARGUMENTS[op]))))
    message = data.draw(almost(good) | st.dictionaries(st.sampled_from(sorted(good)), JSON))
    if isinstance(message, dict):
        try:
            request = parse_request(message)
            assert isinstance(request.args, ARGUMENTS[request.op])
        except ProtocolError:
            pass
    reply = {"id": 1, "result": to_wire(data.draw(of(RESULTS[op])))}
    message = data.draw(almost(reply) | st.dictionaries(st.sampled_from(["id", "result", "error"]), JSON))
    if isinstance(message, dict):
        try:
            answer = parse_reply(message, op)
            assert (answer.error is None) == isinstance(answer.result, RESULTS[op])
        except ProtocolError:
            pass


@pytest.mark.parametrize(
    "change",
    [
        {"id": None},
        {"id": "1"},
        {"id": True},
        {"op": "run-command"},
        {"op": None},
        {"op": ["hold"]},
        {"token": 5},
        {"deadline_ms": -1},
        {"deadline_ms": 3_600_001},
        {"deadline_ms": 1.5},
        {"args": None},
        {"args": []},
        {"args": {"level": "kernel"}},
        {"args": {}},
        {"args": {"level": "system", "path": "/etc/passwd"}},
        {"exec": "rm"},
    ],
    ids=repr,
)
def test_a_request_the_protocol_does_not_have_is_refused(change):
    """Broken: the agent would take orders nobody designed."""
    good = {"id": 1, "op": "hold", "token": "t", "deadline_ms": 1, "args": {"level": "system"}}
    parse_request(good)
    with pytest.raises(ProtocolError):
        parse_request({**good, **change})


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"id": 1},
        {"result": {"state": "idle"}},
        {"id": "1", "result": {"state": "idle"}},
        {"id": True, "result": {"state": "idle"}},
        {"id": None, "error": ERROR},
        {"id": 1, "result": {"state": "idle"}, "error": ERROR},
        {"id": 1, "result": {"state": "idle"}, "more": 1},
        {"id": 1, "result": None},
        {"id": 1, "result": {"state": "happy"}},
        {"id": 1, "error": {"code": "strange", "message": "no"}},
        {"id": 1, "error": "no"},
    ],
    ids=repr,
)
def test_a_reply_the_protocol_does_not_have_is_refused(reply):
    """Broken: the host would believe an answer that is none."""
    with pytest.raises(ProtocolError):
        parse_reply(reply, Op.STATUS)


def test_an_error_carries_its_code():
    """Broken: the host could not tell a refusal from a failure."""
    assert parse_reply({"id": 1, "error": ERROR}, Op.HOLD).error == Error(ErrorCode.REFUSED, "no")


def test_each_request_has_its_arguments_and_its_result():
    """Broken: a new request would raise KeyError in the reader instead of being refused."""
    assert set(ARGUMENTS) == set(RESULTS) == set(Op)
