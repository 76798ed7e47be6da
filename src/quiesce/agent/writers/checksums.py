"""CRC-32C (Castagnoli), by which PostgreSQL (port/pg_crc32c.h) and InnoDB (log0recv.cc) check their logs."""

from __future__ import annotations


def crc32c(data: bytes, before: int = 0) -> int:
    """`before`: the checksum of what comes before this data."""
    value = before ^ 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _make_table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = (number >> 1) ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_TABLE = _make_table()
