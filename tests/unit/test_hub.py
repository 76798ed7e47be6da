"""local/hub.py: the network of the copies of a group, with sockets as QEMU's."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import ClassVar

import pytest

from quiesce.local import hub
from quiesce.local.hub import Hub
from quiesce.model.errors import HypervisorError

ONE, TWO, THREE = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3))
ALL = b"\xff" * 6
NOTHING_FOR_S = 0.2


class Card:
    """QEMU's end of one."""

    made: ClassVar[list[socket.socket]] = []

    def __init__(self, network: Hub, segment: str = "bridge br0") -> None:
        self.socket = socket.create_connection(network.plug(segment), 5)
        self.made.append(self.socket)

    def send(self, to: bytes, sender: bytes, content: bytes = b"") -> bytes:
        frame = to + sender + b"\x08\x00" + content
        self.socket.sendall(struct.pack("!I", len(frame)) + frame)
        return frame

    def receive(self) -> bytes:
        (length,) = struct.unpack("!I", self._exactly(4))
        return self._exactly(length)

    def hears_nothing(self) -> bool:
        self.socket.settimeout(NOTHING_FOR_S)
        try:
            return not self.socket.recv(1)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(5)

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            assert more, "the network hung up"
            data += more
        return data


@pytest.fixture
def network() -> Iterator[Hub]:
    with Hub() as network:
        yield network
    while Card.made:
        Card.made.pop().close()


def cards(network: Hub, number: int, segment: str = "bridge br0") -> list[Card]:
    made = [Card(network, segment) for _ in range(number)]
    network.join()
    return made


def test_frames_go_to_whom_they_are_for(network):
    """Broken: copies could not talk to each other; or each would see what the others say."""
    one, two, three = cards(network, 3)
    asked = one.send(ALL, ONE, b"who has?")
    assert (two.receive(), three.receive()) == (asked, asked)
    answer = two.send(ONE, TWO, b"I have")
    assert one.receive() == answer
    assert three.hears_nothing()
    large = one.send(TWO, ONE, b"x" * 9000)
    assert two.receive() == large


def test_networks_are_apart(network):
    """Broken: a front end's copy could reach what production keeps on another network."""
    (front,), (back,) = cards(network, 1), cards(network, 1, "bridge br1")
    front.send(ALL, ONE)
    assert back.hears_nothing()


def test_a_card_that_goes_disturbs_nobody(network):
    """Broken: the end of one copy would cut off the others."""
    one, two, three = cards(network, 3)
    three.send(ALL, THREE)
    assert (one.receive(), two.receive()) == (ALL + THREE + b"\x08\x00",) * 2
    three.socket.close()
    one.send(THREE, ONE)
    assert two.receive()[:6] == THREE  # its station is not known any more
    two.socket.sendall(struct.pack("!I", 2**31))  # no frame: it is cut off
    assert two.socket.recv(1) == b""
    one.send(ALL, ONE)


def test_one_who_does_not_listen_does_not_stop_the_others(network, monkeypatch):
    """Broken: a copy that hangs would fill this process's memory, or stop the network."""
    monkeypatch.setattr(hub, "MAX_WAITING", 100_000)
    one, two, three = cards(network, 3)
    three.send(ALL, THREE)
    one.receive(), two.receive()
    for _ in range(300):
        one.send(TWO, ONE, b"x" * 60_000)
    said = one.send(THREE, ONE, b"still there?")
    while three.receive() != said:
        pass


def test_nobody_else_gets_in(network):
    """Broken: a user of the host could listen to the copies, or speak to them."""
    address = network.plug("bridge br0")
    with contextlib.closing(socket.create_connection(address, 5)):
        qemu = socket.create_connection(address, 5)
        with pytest.raises(HypervisorError, match="another program of this host connected"):
            network.join()
        qemu.close()
    address = network.plug("bridge br0")
    with contextlib.closing(socket.create_connection(address, 5)):
        network.join()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 5)


def test_a_card_that_is_not_connected_is_an_error(network, monkeypatch):
    """Broken: a copy without its network would be called damaged."""
    monkeypatch.setattr(hub, "JOIN_S", 0.01)
    network.plug("bridge br0")
    with pytest.raises(HypervisorError, match="was not connected"):
        network.join()


def test_it_ends_with_its_block(network):
    """Broken: the network would go on after the command."""
    with Hub() as ending:
        one, two = cards(ending, 2)
        waiting = ending.plug("bridge br0")
    assert one.socket.recv(1) == two.socket.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(waiting, 5)
