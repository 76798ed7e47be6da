#!/usr/bin/python3
"""Runs on `web` in a copy of a checkpoint, as /etc/quiesce/verify.d/books: ends with 0 if the books of the two databases agree.

It reads them as the order service does, over the network of the copies."""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg2
import pymysql

LEVEL = 1_000_000
"""The stock of each item at the beginning (lab/shop/servers.py)."""
SERVERS = Path("/etc/shop")
"""Its addresses, as `DB=198.18.0.3`."""


def main() -> int:
    address = dict(line.split("=") for line in SERVERS.read_text().split())
    with psycopg2.connect(host=address["DB"], dbname="shop", user="shop", connect_timeout=60).cursor() as cursor:
        cursor.execute("SELECT key, item, quantity FROM orders")
        orders = set(cursor.fetchall())
    with pymysql.connect(host=address["STOCK"], database="shop", user="shop", connect_timeout=60).cursor() as cursor:
        cursor.execute("SELECT order_key, item, quantity FROM movements")
        movements = set(cursor.fetchall())
        cursor.execute("SELECT item, level FROM items")
        levels = dict(cursor.fetchall())
    gone = dict.fromkeys(levels, 0)
    for _, item, quantity in movements:
        gone[item] += quantity
    wrong = [item for item, level in levels.items() if level + gone[item] != LEVEL]
    print(f"{len(orders)} orders, {len(orders ^ movements)} without their counterpart, {len(wrong)} items with a wrong level")
    return 1 if orders != movements or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
