"""The doors through which somebody else's bytes come in: from an export, from beside an image, from a guest, from a process of
a guest's user, from files that a guest's user owns."""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from quiesce.agent.writers import base, innodb_log, mariadb_files, postgresql_files, redis_configuration, wal
from quiesce.catalog import exported, manifest
from quiesce.catalog.exported import Export, ExportedDisk, ExportedFile
from quiesce.catalog.seal import Seal
from quiesce.codec import CodecError, decode, encode
from quiesce.hypervisor import agent_answers
from quiesce.hypervisor.definition import parse_definition, require_allowed
from quiesce.model.errors import QuiesceError
from quiesce.model.tree import Checkpoint
from quiesce.storage import qcow2
from quiesce.wire import framing, messages
from quiesce.wire.schema import to_wire
from tests.definitions import definition_of
from tests.samples import node
from tests.unit import hostile
from tests.unit.innodb_files import FIRST, Ring
from tests.unit.wal_files import INSERT, Log

SEGMENT = 1 << 20
SCRATCH = Path(tempfile.mkdtemp(prefix="quiesce-doors-"))
"""For files that a door reads by their names."""
atexit.register(shutil.rmtree, SCRATCH)


@dataclass(frozen=True)
class Door:
    read: Callable[[bytes], object]
    expected: tuple[type[BaseException], ...]
    """The errors that the door's caller handles."""
    seeds: tuple[bytes, ...]

    def try_(self, data: bytes) -> None:
        with contextlib.suppress(*self.expected):
            self.read(data)


def _export() -> bytes:
    files = tuple(ExportedFile(name, 10, "0" * 64) for name in ("vda.qcow2", exported.DOMAIN))
    return exported.dump(Export(exported.FORMAT, node("n"), (ExportedDisk("vda", "vda.qcow2", 1 << 24),), files))


def _seal() -> Seal:
    return Seal(SCRATCH / "key", SCRATCH)


def _manifest() -> bytes:
    return manifest.dump(manifest.Manifest(node("n"), definition_of("server", path="/images/n.vda.qcow2")), _seal())


def _definition(content: bytes) -> None:
    require_allowed(parse_definition(content), ["vda"], None, ())


def _image(content: bytes) -> None:
    qcow2.check_header("vda.qcow2", content[:4096], size=1 << 20, capacity=qcow2.capacity(content))


def _header() -> bytes:
    """Of a qcow2 image of 16 MiB: docs/interop/qcow2.txt."""
    head = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, 1 << 24, 0, 1, 196608, 65536, 1, 0, 0, 0, 0, 0, 4, 104)
    return head + bytes(24)


def _guest(line: bytes) -> None:
    message = framing.from_line(line)
    for op in messages.RESULTS:
        with contextlib.suppress(framing.ProtocolError):
            messages.parse_reply(message, op)


def _agent(line: bytes) -> None:
    messages.parse_request(framing.from_line(line))


def _qemu_agent(answer: bytes) -> None:
    text = answer.decode("utf-8", "replace")
    for command in agent_answers.SCHEMAS:
        with contextlib.suppress(agent_answers.AnswerError):
            agent_answers.decoded(command, text)


def _body(content: bytes) -> None:
    checkpoint = decode(Checkpoint, json.loads(content))
    assert decode(Checkpoint, json.loads(json.dumps(encode(checkpoint)))) == checkpoint


def _server(protocol: str) -> Callable[[bytes], None]:
    """A process of the guest that answers each request of the agent with what comes next: its answers are the lines between
    the bytes 0x01 0x02."""

    def read(data: bytes) -> None:
        pieces = data.split(b"\1\2")

        def behave(connection: socket.socket) -> None:
            connection.settimeout(0.2)
            for piece in pieces:
                connection.sendall(piece)
                if not connection.recv(65536):
                    return

        with pytest.MonkeyPatch.context() as patch, hostile.serving(hostile.path_of(protocol, SCRATCH), behave):
            patch.setattr(base, "IDENTIFY_TIMEOUT_S", 0.5)
            patch.setattr(base, "LET_GO_TIMEOUT_S", 0.2)
            writer = hostile.writer_of(protocol, SCRATCH, patch)
            writer.identify()
            writer.abort()
            framing.to_line({"result": to_wire(writer.report())})

    return read


def _in_file(name: str, read: Callable[[str], object]) -> Callable[[bytes], object]:
    """A file that the server's own user can write."""
    path = SCRATCH / name
    path.parent.mkdir(parents=True, exist_ok=True)

    def door(data: bytes) -> object:
        path.write_bytes(data)
        return read(str(SCRATCH))

    return door


def _some_log() -> Log:
    log = Log(SCRATCH, SEGMENT, segment=SEGMENT)
    for number in range(1, 5):
        log.append(INSERT, b"row" * number, xid=700 + number)
    return log


def _log_bytes() -> bytes:
    log = _some_log()
    log.write()
    return log.path(SEGMENT).read_bytes()[:512]


def _log(data: bytes) -> None:
    """The first bytes of a segment of PostgreSQL's log."""
    log = _some_log()
    log.path(SEGMENT).write_bytes(data.ljust(SEGMENT, b"\0"))
    with contextlib.suppress(wal.WalError):
        wal.tail(str(SCRATCH), 1, SEGMENT, log.start)
    with contextlib.suppress(wal.WalError):
        wal.records(str(SCRATCH), 1, SEGMENT, log.start, log.position)


def _some_redo() -> Ring:
    ring = Ring(capacity=4096)
    ring.checkpoint(FIRST)
    for size in (1, 15, 300):
        ring.write(size, size)
    return ring


def _redo(directory: str) -> None:
    """InnoDB's log."""
    log = innodb_log.InnodbLog(directory)
    try:
        log.end(log.checkpoint())
    finally:
        log.close()


def _binary_log(directory: str) -> None:
    mariadb_files.binary_log_end(directory, "binlog.000001", 4)


def _redis_file(directory: str) -> None:
    redis_configuration.read_settings(f"{directory}/redis.conf")


_ANSWER = {"id": 1, "result": {"state": "idle"}}
_REPLY = framing.to_line({"id": 1, "error": {"code": "failed", "message": "m"}}).strip()
_CHECKPOINT = json.dumps(encode(node("n"))).encode()
_RESP = b"$30\r\nredis_version:7\r\nprocess_id:1\r\n\r\n"
DOORS = {
    "export": Door(exported.load, (QuiesceError,), (_export(),)),
    "manifest": Door(lambda data: manifest.load(data, _seal()), (QuiesceError,), (_manifest(),)),
    "definition": Door(_definition, (QuiesceError,), (definition_of("server", path="/images/n.vda.qcow2").encode(),)),
    "image": Door(_image, (QuiesceError,), (_header(),)),
    "catalog": Door(_body, (CodecError, ValueError, RecursionError), (_CHECKPOINT,)),
    "guest": Door(_guest, (framing.ProtocolError,), (json.dumps(_ANSWER).encode(), _REPLY)),
    "agent": Door(_agent, (framing.ProtocolError,), (b'{"id": 1, "op": "hold", "token": "t", "args": {"level": "system"}}',)),
    "qemu-ga": Door(
        _qemu_agent, (), (b'{"return": {"pid": 1}}', b'{"return": [{"mountpoint": "/", "type": "ext4", "name": "x"}]}')
    ),
    "postgresql": Door(_server("postgresql"), (), (hostile.POSTGRESQL_READY, b"\1\2".join([hostile.POSTGRESQL_READY] * 3))),
    "pgbouncer": Door(_server("pgbouncer"), (), (hostile.POSTGRESQL_READY,)),
    "mariadb": Door(_server("mariadb"), (), (hostile.MARIADB_GREETING + b"\1\2\7\0\0\2\0\0\0\2\0\0\0",)),
    "redis": Door(_server("redis"), (), (b"\1\2".join([b"+OK\r\n", _RESP, b"*2\r\n$3\r\ndir\r\n$1\r\n/\r\n"]),)),
    "wal": Door(_log, (OSError,), (_log_bytes(),)),
    "pg_control": Door(_in_file("global/pg_control", postgresql_files.read_control_file), (OSError,), (bytes(range(48)),)),
    "innodb": Door(_in_file("ib_logfile0", _redo), (OSError, innodb_log.InnodbLogError), (bytes(_some_redo().data),)),
    "binlog": Door(_in_file("binlog.000001", _binary_log), (OSError,), (b"\xfebin" + bytes(60),)),
    "redis.conf": Door(_in_file("redis.conf", _redis_file), (OSError,), (b'dir "/srv"\nsave 60 1\ninclude /dev/shm/x\n',)),
}
