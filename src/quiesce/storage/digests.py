"""A digest of all bytes of a file. Holes count as zeros and cost nothing: a copy that is not sparse has the same digest."""

from __future__ import annotations

import hashlib
import struct

BLOCK = 64 * 1024
_ZEROS = bytes(BLOCK)


class ContentDigest:
    """SHA-256 over the number and the bytes of each block of BLOCK bytes that is not all zeros, and the length of the file. To
    be given the file's data and holes, from its beginning to its end."""

    def __init__(self) -> None:
        self.length = 0
        """Bytes so far, holes included."""
        self._digest = hashlib.sha256()
        self._begun = bytearray()
        """The last block, of which the end is not known yet."""

    def data(self, piece: bytes) -> None:
        self.length += len(piece)
        view = memoryview(piece)
        if self._begun:
            missing = BLOCK - len(self._begun)
            self._begun += view[:missing]
            view = view[missing:]
            if len(self._begun) < BLOCK:
                return
            self._block(self.length - len(view), memoryview(self._begun))
            self._begun = bytearray()
        while len(view) >= BLOCK:
            self._block(self.length - len(view) + BLOCK, view[:BLOCK])
            view = view[BLOCK:]
        self._begun += view

    def hole(self, length: int) -> None:
        if self._begun:
            filled = min(length, BLOCK - len(self._begun))
            self.data(bytes(filled))
            length -= filled
        self.length += length // BLOCK * BLOCK
        self.data(bytes(length % BLOCK))

    def hexdigest(self) -> str:
        """The digest, when the file is at its end."""
        found = self._digest.copy()
        if any(self._begun):
            found.update(struct.pack(">Q", self.length) + self._begun.ljust(BLOCK, b"\0"))
        found.update(b"end" + struct.pack(">Q", self.length))
        return found.hexdigest()

    def _block(self, end: int, block: memoryview) -> None:
        if block != _ZEROS:
            self._digest.update(struct.pack(">Q", end))
            self._digest.update(block)
