"""What the agent does when a process that it asks is its enemy: time, memory, and words have an end (agent/limits.py,
agent/bounds.py). Real sockets; the fuzz of every protocol that the agent speaks."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.standstill import within
from quiesce.agent import bounds, conversation, hook, limits, linux, sockets
from quiesce.agent.conversation import Conversation
from quiesce.agent.writers import base
from quiesce.agent.writers.base import ApplicationWriter, deadline_in_ns
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Filesystem, FreezeState, Outcome, WriterReport
from quiesce.wire.framing import MAX_LINE, from_line, to_line
from quiesce.wire.messages import Inventory, Op, State
from quiesce.wire.schema import from_wire, to_wire
from tests.strategies import examples, of
from tests.unit import hostile
from tests.unit.hostile import PROTOCOLS, path_of, writer_of

SAYS = {
    "postgresql": hostile.POSTGRESQL_READY,
    "pgbouncer": hostile.POSTGRESQL_READY,
    "mariadb": hostile.MARIADB_GREETING,
    "redis": b"+OK\r\n$300000\r\n",
}
ENDLESS = {
    "postgresql": (hostile.POSTGRESQL_READY, hostile.POSTGRESQL_ROWS),
    "pgbouncer": (hostile.POSTGRESQL_READY, hostile.POSTGRESQL_ROWS),
    "mariadb": (hostile.MARIADB_GREETING, b"\xff\xff\xff\0" + b"x" * 0xFFFFFF),
    "redis": (b"*1000000000\r\n", b"+" + b"x" * 60_000 + b"\r\n"),
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "IDENTIFY_TIMEOUT_S", 0.6)
    monkeypatch.setattr(base, "LET_GO_TIMEOUT_S", 0.3)


def _identified(protocol: str, directory: Path, monkeypatch: pytest.MonkeyPatch, behave: hostile.Behaviour) -> WriterReport:
    with hostile.serving(path_of(protocol, directory), behave):
        writer = writer_of(protocol, directory, monkeypatch)
        writer.identify()
        writer.abort()
    return writer.report()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_sends_a_byte_now_and_then_has_no_more_time_than_a_silent_one(protocol, tmp_path, monkeypatch, impatient):
    """Broken: a process named `mariadbd` would keep the agent, and the real databases that it holds, as long as it likes."""
    with within(5):
        found = _identified(protocol, tmp_path, monkeypatch, hostile.drips(SAYS[protocol]))
    assert found.outcome is Outcome.TIMEOUT
    assert found.grade is (Grade.CLEAN if found.stateless else Grade.REFUSED)
    assert f"process {os.getpid()} of user root, " in str(found.last_error)


@pytest.mark.parametrize("phase", ["identify", "prepare", "hold", "release", "abort", "post_checkpoint"])
def test_every_phase_has_a_limit_of_its_own(phase, tmp_path, monkeypatch, impatient):
    """Broken: the phase that was forgotten would be the one that hangs."""
    seen: list[float] = []

    class Asking(ApplicationWriter):
        def ask(self, *_: object) -> None:
            limit = limits.current()
            seen.append(limit.left_s() if limit else -1)

        on_identify = on_prepare = on_hold = on_release = on_abort = on_post_checkpoint = ask

    writer = Asking("x")
    steps: dict[str, Callable[[], object]] = {
        "identify": writer.identify,
        "prepare": lambda: writer.prepare(deadline_in_ns(3), 1000),
        "hold": lambda: writer.hold(deadline_in_ns(3)),
        "release": lambda: (writer.hold(deadline_in_ns(3)), writer.release()),
        "abort": writer.abort,
        "post_checkpoint": lambda: writer.post_checkpoint(True),
    }
    steps[phase]()
    assert seen
    assert all(0 < left <= base.POST_CHECKPOINT_TIMEOUT_S for left in seen)
    assert limits.current() is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_without_an_end_take_little_memory(protocol, tmp_path, monkeypatch):
    """Broken: a postmaster's endless rows would take 900 MB in two seconds, and the kernel would end something else for it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with within(50):
        found = _identified(protocol, tmp_path, monkeypatch, hostile.says(*ENDLESS[protocol], again=True))
    assert found.last_error
    assert found.outcome in (Outcome.OUT_OF_RESOURCES, Outcome.TIMEOUT, Outcome.RETRYABLE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000


def test_too_much_is_said_to_be_too_much_and_by_whom(tmp_path, monkeypatch):
    """Broken: nobody would know which process of the guest it was."""
    monkeypatch.setattr(limits, "MAX_BYTES", 100_000)
    found = _identified("redis", tmp_path, monkeypatch, hostile.says(b"*10000000\r\n", b"+xxxxxxxxxxx\r\n" * 1000, again=True))
    assert found.outcome is Outcome.OUT_OF_RESOURCES
    assert "it sent more than" in str(found.reason)
    assert f"process {os.getpid()} of user root" in str(found.reason)


def test_a_conversation_has_so_much_memory_and_no_more():
    """Broken: whatever a library makes of an answer could take all memory of the guest."""
    child = os.fork()
    if child == 0:
        linux.limit_memory(256 << 20)
        try:
            bytearray(512 << 20)
        except MemoryError:
            linux.limit_no_memory()
            bytearray(512 << 20)  # which a command that is run may have
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_the_earlier_deadline_counts_and_a_librarys_own_may_be_shorter():
    """Broken: a library that sets its own time-out would undo the limit, or the limit undo a shorter one."""
    ours, theirs = socket.socketpair()
    with theirs, sockets.Connection(fileno=ours.detach()) as connection, within(5):
        with limits.until(deadline_in_ns(0.2)), limits.until(deadline_in_ns(60)), pytest.raises(TimeoutError):
            connection.settimeout(60)
            connection.recv(1)
        connection.settimeout(0.1)
        with limits.until(deadline_in_ns(60)), pytest.raises(TimeoutError):
            connection.recv_into(bytearray(1))


# -- any bytes, over every protocol that the agent speaks


def _ints() -> st.SearchStrategy[bytes]:
    return st.integers(-(2**31), 2**31 - 1).map(lambda n: struct.pack("!i", n))


def _pieces(protocol: str) -> st.SearchStrategy[list[bytes]]:
    """What almost is an answer: the right heads with any lengths and any content."""
    noise = st.binary(max_size=60)
    if protocol in ("postgresql", "pgbouncer"):
        heads = st.tuples(st.sampled_from(list(b"RSKZTDCEN1234ntIAGHWVX")).map(lambda kind: bytes([kind])), _ints(), noise)
        proper = st.tuples(st.sampled_from(list(b"RSKZTDCEN")).map(lambda kind: bytes([kind])), noise).map(
            lambda pair: pair[0] + struct.pack("!i", len(pair[1]) + 4) + pair[1]
        )
        parts = heads.map(b"".join) | proper | st.just(hostile.POSTGRESQL_READY)
    elif protocol == "mariadb":
        packets = st.tuples(st.integers(0, 5), noise).map(
            lambda pair: len(pair[1]).to_bytes(3, "little") + bytes([pair[0]]) + pair[1]
        )
        heads = st.tuples(st.integers(0, 2**24 - 1), noise).map(lambda pair: pair[0].to_bytes(3, "little") + b"\2" + pair[1])
        parts = (
            packets | heads | st.sampled_from([hostile.MARIADB_GREETING, b"\7\0\0\2\0\0\0\2\0\0\0", b"\7\0\0\1\0\0\0\2\0\0\0"])
        )
    else:
        number = st.integers(-(2**40), 2**40).map(lambda n: str(n).encode())
        info = b"redis_version:7\r\nprocess_id:%d\r\nrole:master\r\nrdb_changes_since_last_save:x\r\n" % os.getpid()
        heads = st.tuples(st.sampled_from([b"+", b"-", b":", b"$", b"*", b"%"]), number | noise).map(
            lambda p: b"".join(p) + b"\r\n"
        )
        parts = heads | st.sampled_from([b"+OK\r\n", b"$%d\r\n%b\r\n" % (len(info), info), b"*2\r\n$3\r\ndir\r\n$1\r\n/\r\n"])
    return st.lists(parts | noise, max_size=12)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@examples(25)
@given(data=st.data())
@pytest.mark.timeout(300)
def test_whatever_a_server_answers_it_becomes_a_typed_outcome_in_time(protocol, data):
    """Broken: some process of the guest would end the agent's conversation, or keep it waiting, by what it answers."""
    pieces = data.draw(_pieces(protocol))
    drip = data.draw(st.sampled_from([0.0, 0.0, 0.0, 0.01]))
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as directory, within(30):
        monkeypatch.setattr(base, "IDENTIFY_TIMEOUT_S", 0.3)
        monkeypatch.setattr(base, "LET_GO_TIMEOUT_S", 0.2)

        def behave(connection: socket.socket) -> None:
            hostile.says(*pieces, pause_s=drip)(connection)
            connection.settimeout(0.2)
            with contextlib.suppress(OSError):
                while connection.recv(65536):
                    connection.sendall(pieces[-1] if pieces else b"")

        with hostile.serving(path_of(protocol, Path(directory)), behave):
            writer = writer_of(protocol, Path(directory), monkeypatch)
            writer.guarded = True
            writer.identify()
            writer.abort()
            writer.prepare(deadline_in_ns(0.4), 100)
            with contextlib.suppress(base.WriterError):
                writer.hold(deadline_in_ns(0.3))
            writer.release()
            writer.abort()
            report = writer.report()
        assert isinstance(report.grade, Grade)
        assert isinstance(report.outcome, Outcome)
        json.dumps(to_wire(report)).encode("ascii")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=300), size=st.integers(20, 1200))
def test_what_is_cut_fits_and_says_so(text, size):
    """Broken: a reply would be too long after all, where each letter takes six bytes."""
    found = bounds.cut(text * 7, size)
    assert len(json.dumps(found)) <= size + 2
    assert found == text * 7 or (found.endswith("…") and (text * 7).startswith(found[:-1]))


# -- what is told fits into a line


HUGE = WriterReport(
    "redis:" + "é" * 5000,
    "redis",
    "7" * 100_000,
    Level.BACK_END,
    Grade.CRASH,
    "r" * 300_000,
    "primary",
    {"run_id": "x" * 300_000, **{f"k{n}": "v" * 900 for n in range(900)}},
    "/" + "d" * 9000,
    tuple("w" * 9000 for _ in range(900)),
    filesystems=tuple(f"/{n}" for n in range(5000)),
)


def _fits(writers: list[WriterReport], filesystems: list[Filesystem]) -> Inventory:
    """Through the wire and back."""
    told = Inventory(bounds.bounded_writers(writers), bounds.bounded_filesystems(filesystems))
    line = to_line({"id": 1, "result": to_wire(told)})
    assert len(line) <= MAX_LINE
    return from_wire(Inventory, from_line(line.rstrip(b"\n"))["result"])


def test_1200_servers_with_names_without_end_and_160_overlays_fit_into_one_reply():
    """Broken: one `run_id` of 300 KB would keep the guest from ever being answered for, `Required=no` or not."""
    report = bounds.bounded_report(HUGE)
    assert report.position["run_id"].endswith("…")
    assert report.position["…"].startswith("and ")
    assert report.warnings[-1] == f"… and {900 - bounds.MAX_WARNINGS + 1} more"
    overlays = [
        Filesystem(f"/proc/7/root/{n}{'o' * 900}", "overlay", "o" * 900, FreezeState.SKIPPED, "carried") for n in range(900)
    ]
    root = Filesystem("/", "ext4", "/dev/vda1", FreezeState.FREEZABLE)
    told = _fits([replace(report, id=f"{n}", required=False) for n in range(1200)], [*overlays, root])
    assert told.filesystems[-2].mountpoint == "/"
    assert "more" in told.filesystems[-1].mountpoint
    assert told.writers[-1].application.endswith("more writers")
    assert not told.writers[-1].required


@given(st.lists(st.tuples(of(WriterReport), st.booleans()), min_size=1, max_size=30), st.integers(100, 5000))
def test_a_list_that_is_cut_never_raises_the_label(drawn, room):
    """Broken: whoever starts enough processes would push the one that cannot be held out of the list."""
    writers = [replace(report, required=required) for report, required in drawn]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bounds, "WRITERS_SIZE", room)
        told = bounds.bounded_writers(writers)
    worst = list(bounds._WORST_FIRST)
    needed = [report.grade for report in writers if report.required]
    shown = [report.grade for report in told if report.required]
    assert bool(needed) == bool(shown)
    if needed:
        assert min(map(worst.index, needed)) == min(map(worst.index, shown))


# -- the last resort


def _ended_by(work: Callable[[], object]) -> int:
    """The signal that ended a process that does this."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        work()
        os._exit(0)
    with within(20):
        return os.WTERMSIG(os.waitpid(child, 0)[1])


def _hang(*_: object) -> list[ApplicationWriter]:
    time.sleep(60)
    return []


def test_a_freeze_for_another_platform_that_hangs_is_ended(monkeypatch):
    """Broken: the host, and all later backups by qemu-guest-agent, would wait until somebody restarts the agent."""
    monkeypatch.setattr(hook, "PREPARE_TIMEOUT_S", 0)
    monkeypatch.setattr(hook, "OVERTIME_S", 1)
    assert _ended_by(lambda: hook._Held({"window_ms": 1}).freeze(_hang)) == signal.SIGALRM


@pytest.mark.parametrize("op", ["identify", "prepare", "hold", "thaw", "release", "abort"])
def test_a_step_that_hangs_is_ended_whichever_it_is(op, monkeypatch):
    """Broken: one that hangs in the window would keep the agent from every host and hook, with the dead-man long done."""
    monkeypatch.setattr(conversation, "OVERTIME_S", 1)
    monkeypatch.setattr(conversation, "LET_GO_S", 1)
    monkeypatch.setitem(conversation.ALLOWED, Op(op), tuple(State))
    talk = Conversation(-1, list)
    monkeypatch.setattr(talk, "_handlers", lambda: {Op(op): _hang})
    args = {"prepare": {"window_ms": 1, "insist": True}, "hold": {"level": "system"}, "release": {"level": "system"}}
    line = to_line({"id": 1, "op": op, "token": "t", "deadline_ms": 100, "args": args.get(op, {})})
    assert _ended_by(lambda: talk.answer(line.rstrip(b"\n"))) == signal.SIGALRM
