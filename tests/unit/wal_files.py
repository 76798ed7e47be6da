"""Makes write-ahead logs as PostgreSQL lays them out, independently of the code that reads them."""

from __future__ import annotations

import struct
from pathlib import Path

PAGE = 8192
CHECKPOINT_ONLINE, CHECKPOINT_REDO, RUNNING_XACTS = (0, 0x10), (0, 0xE0), (8, 0x10)
INSERT = (10, 0x00)  # heap


def castagnoli(data: bytes) -> int:
    """CRC-32C, bit by bit from the polynomial."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


class Log:
    """A log that begins at `start`. Bytes are appended one by one, so page boundaries take care of themselves."""

    def __init__(self, directory: Path, start: int, segment: int = 4 * PAGE, timeline: int = 1) -> None:
        self.directory = directory
        self.segment = segment
        self.timeline = timeline
        self.position = start
        self._previous = 0
        """LSN of the last record."""
        self._pages: dict[int, bytearray] = {}
        self._page(start)
        self._skip_header()
        self.start = self.position

    def record(self, kind: tuple[int, int], length: int = 24) -> int:
        """Appends a record of `length` bytes, header included. Returns its LSN."""
        manager, info = kind
        return self._put(struct.pack("=IIQBB2xI", length, 0, 0, info, manager, 0xC4C) + b"\xaa" * (length - 24))

    def _put(self, record: bytes) -> int:
        self._skip_header()
        at = self.position
        for byte in record:
            self._skip_header()
            self._page(self.position)[self.position % PAGE] = byte
            self.position += 1
        self.position += -self.position % 8
        return at

    def append(
        self,
        kind: tuple[int, int],
        data: bytes,
        *,
        xid: int = 0,
        previous: int | None = None,
        before_data: bytes = b"",
        damaged: bool = False,
    ) -> int:
        """Appends a record with this main data, with checksum and chain as the server makes them. Returns its LSN."""
        head = b"\xff" + bytes([len(data)]) if len(data) < 256 else b"\xfe" + struct.pack("=I", len(data))
        body = before_data + head + data
        self._skip_header()
        before = self._previous if previous is None else previous
        fields = struct.pack("=IIQBB2x", 24 + len(body), xid, before, kind[1], kind[0])
        checksum = castagnoli(body + fields) ^ damaged
        at = self._previous = self._put(fields + struct.pack("=I", checksum) + body)
        return at

    def write(self) -> Path:
        for address, page in self._pages.items():
            path = self.path(address)
            if not path.exists():
                path.write_bytes(bytes(self.segment))
            with path.open("r+b") as file:
                file.seek(address % self.segment)
                file.write(page)
        return self.directory

    def path(self, position: int) -> Path:
        number, per_id = position // self.segment, 2**32 // self.segment
        return self.directory / f"{self.timeline:08X}{number // per_id:08X}{number % per_id:08X}"

    def _skip_header(self) -> None:
        if self.position % PAGE == 0:
            self._page(self.position)
            self.position += 40 if self.position % self.segment == 0 else 24

    def _page(self, position: int) -> bytearray:
        address = position - position % PAGE
        if address not in self._pages:
            page = bytearray(PAGE)
            struct.pack_into("=HHIQI", page, 0, 0xD116, 0, self.timeline, address, 0)
            if address % self.segment == 0:
                struct.pack_into("=QII", page, 24, 4711, self.segment, PAGE)
            self._pages[address] = page
        return self._pages[address]
