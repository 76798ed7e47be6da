"""agent/programs.py: real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.agent import programs
from quiesce.agent.programs import Programs, Registration
from quiesce.model.grades import Level
from tests.strategies import JSON, almost, examples
from tests.unit.fake_programs import SHOP, Peer, attend, ids, join, listening, named, wakes


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Programs]:
    with listening(tmp_path) as found:
        yield found


def test_a_program_that_registers_is_told_so_and_listed(agent):
    """Broken: no program could be a writer, or know that it is one."""
    with contextlib.closing(join(agent, SHOP)) as peer:
        assert peer.hear() == {"registered": "external:shop"}
        [program] = agent.connected()
        assert program.registration == Registration(
            1, "shop", "web shop", "3.2", Level.FRONT_END, False, paths=("/srv/shop",), hold_timeout_ms=3000
        )


def test_only_root_can_reach_it(agent):
    """Broken: any user could have every checkpoint fail, or call a crash image clean."""
    assert stat.S_IMODE(Path(agent._listener.getsockname()).stat().st_mode) == 0o600


def test_the_kernel_says_whose_program_it_is(agent, monkeypatch):
    """Broken: the socket's mode would be all that keeps others out, also where it was bound into a container."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with contextlib.closing(join(agent, SHOP)) as peer:
        assert "root" in peer.hear()["error"]
        assert peer.hear() is None
        assert ids(agent) == ([], [])


def test_connected_programs_wake_nobody(agent):
    """Broken: the idle service would use processor time as long as a program is connected, or came and went."""
    peers = [join(agent, named(name)) for name in ("one", "two", "three")]
    assert not wakes(agent, 0.05)
    peers[1].close()
    assert wakes(agent)
    attend(agent)
    assert not wakes(agent, 0.05)
    for peer in peers:
        peer.close()


def test_a_registration_may_come_in_pieces(agent):
    """Broken: whether a program can register would depend on how the kernel cuts what it writes."""
    with contextlib.closing(Peer(agent)) as peer:
        for byte in json.dumps(SHOP).encode():
            peer.say(bytes([byte]))
            attend(agent)
        assert ids(agent) == ([], [])
        peer.say(b"\n")
        attend(agent)
        assert ids(agent) == (["external:shop"], [])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"hello\n", "not a JSON message"),
        (b"[1]\n", "must be an object"),
        (b"x" * 300_000 + b"\n", "too long"),
        (b"[" * 1000 + b"\n", "nested"),
        ({**SHOP, "protocol": 2}, "protocol 1"),
        ({**SHOP, "protocol": True}, "Registration.protocol"),
        ({**SHOP, "writer": "../shop"}, "Registration.writer"),
        ({**SHOP, "writer": ""}, "Registration.writer"),
        ({**SHOP, "writer": "s" * 64}, "Registration.writer"),
        ({**SHOP, "application": ""}, "Registration.application"),
        ({**SHOP, "version": "3" * 101}, ".version"),
        ({**SHOP, "level": "middle"}, "front-end, back-end, system"),
        ({**SHOP, "paths": ["srv/shop"]}, "Registration.paths"),
        ({**SHOP, "paths": ["/x"] * 17}, "Registration.paths"),
        ({**SHOP, "hold_timeout_ms": 0}, "Registration.hold_timeout_ms"),
        ({**SHOP, "hold_timeout_ms": 60_001}, "Registration.hold_timeout_ms"),
        ({**SHOP, "color": "red"}, "unknown field"),
        ({"protocol": 1, "leave": 3}, "leave"),
    ],
)
def test_what_does_not_fit_is_explained_and_hung_up_on(agent, line, complaint):
    """Broken: a mistake in a program would go unnoticed until its application is not held; or its words reach a terminal."""
    with contextlib.closing(Peer(agent)) as peer:
        for start in range(0, len(line), 100_000) if isinstance(line, bytes) else ():
            peer.say(line[start : start + 100_000])
            attend(agent)
        if not isinstance(line, bytes):
            peer.say(line)
            attend(agent)
        assert complaint in peer.hear()["error"]
        assert peer.hear() is None
        assert ids(agent) == ([], [])


@examples(100)
@given(
    st.lists(
        st.binary(max_size=60)
        | st.sampled_from([SHOP, {"protocol": 1, "leave": "shop"}])
        | st.one_of(almost(SHOP), almost({"protocol": 1, "leave": "shop"}), JSON),
        max_size=4,
    )
)
def test_whatever_a_program_says_the_service_goes_on(lines):
    """Broken: one faulty program would end the agent, and with it every checkpoint of the machine."""
    with tempfile.TemporaryDirectory() as directory, listening(directory) as agent:
        peer = Peer(agent)
        for line in lines:
            peer.say(line)
            attend(agent)
        honest = join(agent, named("honest"))
        assert honest.hear() == {"registered": "external:honest"}
        peer.close()
        attend(agent)
        connected, missing = ids(agent)
        assert connected == ["external:honest"]
        assert len(missing) <= 1
        honest.close()


def test_one_that_speaks_unasked_is_hung_up_on(agent):
    """Broken: what it said would be taken for its answer in the next checkpoint."""
    for more in (b'{"id": 1, "outcome": "stable"}\n', b'{"id"', json.dumps(SHOP).encode() + b"\n"):
        with contextlib.closing(join(agent, SHOP)) as peer:
            assert peer.hear() == {"registered": "external:shop"}
            peer.say(more)
            attend(agent)
            assert "only answers to requests" in peer.hear()["error"]
            assert peer.hear() is None


def test_two_lines_at_once_are_one_too_many(agent):
    """Broken: an answer could be had ready before the question."""
    with contextlib.closing(Peer(agent)) as peer:
        peer.say(SHOP, {"id": 1, "outcome": "stable"})
        attend(agent)
        assert "only answers to requests" in peer.hear()["error"]
        assert ids(agent) == ([], [])


def test_a_name_belongs_to_the_program_that_has_it(agent):
    """Broken: a second copy would be asked instead of the first, which goes on writing."""
    first, second = join(agent, SHOP), join(agent, {**SHOP, "version": "4"})
    assert first.hear() == {"registered": "external:shop"}
    assert "already" in second.hear()["error"]
    assert [program.registration.version for program in agent.connected() if program.registration] == ["3.2"]
    second.close()
    first.close()


def test_a_dead_programs_name_is_free_at_once(agent):
    """Broken: a program that is restarted would be refused, and missed."""
    first, second = join(agent, SHOP), Peer(agent)
    attend(agent)
    second.say({**SHOP, "version": "4"})
    first.close()
    attend(agent)  # to what was said first, and then to the first one's end
    assert second.hear() == {"registered": "external:shop"}
    assert [program.registration.version for program in agent.connected() if program.registration] == ["4"]
    assert agent.missing() == []
    second.close()


def test_there_are_so_many_programs_and_no_more(agent, monkeypatch):
    """Broken: programs without number would fill the agent's memory, and the answer to the host."""
    monkeypatch.setattr(programs, "MAX_PROGRAMS", 3)
    peers = [join(agent, named(f"p{number}")) for number in range(3)]
    peers.pop().close()
    attend(agent)
    with contextlib.closing(join(agent, named("one-more"))) as refused:  # the missing one counts
        assert "3 programs" in refused.hear()["error"]
    with contextlib.closing(join(agent, named("p2"))) as back:
        assert back.hear() == {"registered": "external:p2"}
    for peer in peers:
        peer.close()


def test_there_are_so_many_connections_and_no_more(agent, monkeypatch):
    """Broken: connections that say nothing would use up the agent's descriptors."""
    monkeypatch.setattr(programs, "MAX_CONNECTIONS", 2)
    silent = [Peer(agent), Peer(agent)]
    attend(agent)
    with contextlib.closing(join(agent, SHOP)) as refused:
        assert "2 connections" in refused.hear()["error"]
    silent.pop().close()
    attend(agent)
    with contextlib.closing(join(agent, SHOP)) as taken:
        assert taken.hear() == {"registered": "external:shop"}
    silent.pop().close()


def test_without_descriptors_it_waits_and_does_not_spin(agent):
    """Broken: in a machine short of descriptors the agent would take a whole processor, or end."""
    first, second = Peer(agent), Peer(agent)
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, usual[1]))
    try:
        agent.attend()
        assert not wakes(agent)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    with contextlib.closing(join(agent, SHOP)):  # the next to come brings in those before it
        first.say(named("first"))
        second.say(named("second"))
        attend(agent)
        assert ids(agent)[0] == ["external:first", "external:second", "external:shop"]
    first.close()
    second.close()


def test_one_that_goes_away_is_missed_until_it_comes_back(agent):
    """Broken: an application whose program crashed, or hung and was given up, would silently count for nothing."""
    join(agent, SHOP).close()
    attend(agent)
    assert ids(agent) == ([], ["external:shop"])
    with contextlib.closing(join(agent, SHOP)):
        assert ids(agent) == (["external:shop"], [])


def test_one_that_takes_leave_is_not_missed(agent):
    """Broken: an application that was stopped on purpose would spoil every checkpoint until the machine is restarted."""
    for connected in (True, False):
        peer = join(agent, SHOP)
        assert peer.hear() == {"registered": "external:shop"}
        if not connected:
            peer.close()
            attend(agent)
        with contextlib.closing(join(agent, {"protocol": 1, "leave": "shop"})) as leaving:
            assert leaving.hear() == {"left": "external:shop"}
            assert leaving.hear() is None
        assert ids(agent) == ([], [])
        if connected:
            assert peer.hear() is None
            peer.close()


def test_whom_it_knew_it_misses_after_a_restart(tmp_path):
    """Broken: right after the agent is upgraded a checkpoint would vouch for applications that nobody held."""
    with listening(tmp_path) as first:
        joined = join(first, SHOP)
    with listening(tmp_path) as second:
        assert ids(second) == ([], ["external:shop"])
        assert second.missing()[0].level is Level.FRONT_END
        with contextlib.closing(join(second, {"protocol": 1, "leave": "shop"})):
            assert ids(second) == ([], [])
    with listening(tmp_path) as third:
        assert ids(third) == ([], [])
    joined.close()


def test_what_another_version_remembered_is_passed_over(tmp_path):
    """Broken: an upgraded agent would not start."""
    (tmp_path / "programs.json").write_text(json.dumps({"old": {"writer": "old"}, "shop": SHOP}))
    with listening(tmp_path) as agent:
        assert ids(agent) == ([], ["external:shop"])


def test_a_conversation_that_did_not_end_well_frees_all(agent):
    """Broken: what a conversation held when it was killed would stay held until the programs' own time is up."""
    peers = [join(agent, named("one")), join(agent, named("two"))]
    agent.close_all()
    for peer in peers:
        assert "registered" in peer.hear()
        assert peer.hear() is None
        peer.close()
    assert not wakes(agent, 0.02)
    with contextlib.closing(join(agent, named("one"))) as again:
        assert "registered" in again.hear()


def test_hung_up_on_by_a_conversation_the_service_knows(agent):
    """Broken: one process would keep open what another one closed, and the program never see the end of its connection."""
    peer = join(agent, SHOP)
    assert peer.hear() == {"registered": "external:shop"}
    child = os.fork()
    if child == 0:
        agent.connected()[0].hang_up()
        time.sleep(60)  # with copies of all descriptors
        os._exit(0)
    try:
        assert peer.hear() is None
        assert wakes(agent, 5)
        attend(agent)
        assert ids(agent) == ([], ["external:shop"])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        peer.close()


def test_it_listens_where_an_agent_that_was_killed_left_its_socket(tmp_path):
    """Broken: the service could not be restarted."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "writers.sock"))
    with listening(tmp_path) as agent, contextlib.closing(join(agent, SHOP)) as peer:
        assert "registered" in peer.hear()
