"""The order service. It runs on `web`, and is a writer of quiesce, because only the service knows when no order is in progress.

usage: service.py DB_ADDRESS STOCK_ADDRESS
"""

from __future__ import annotations

import http.server
import sys
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pymysql

from quiesce.writer import Failed, Writer, run

PORT = 8000


class Gate:
    """Lets orders through, several at a time. While it is closed, no order begins; orders that have begun continue."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = False
        self._inside = 0

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Closes the gate. Returns whether all orders that had begun ended within the time."""
        with self._changed:
            self._closed = True
            return self._changed.wait_for(lambda: not self._inside, timeout_s)

    def open(self) -> None:
        with self._changed:
            self._closed = False
            self._changed.notify_all()


class ShopWriter(Writer):
    name = "shop"
    level = "front-end"
    stateless = True  # all its data are in the two databases

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def hold(self, timeout_ms: int) -> None:
        if not self._gate.close(timeout_ms / 1000):
            raise Failed("timeout", "an order did not end in time")

    def release(self) -> None:
        self._gate.open()


class Shop:
    """Writes orders to the two databases. Each thread has a connection to each."""

    def __init__(self, db: str, stock: str) -> None:
        self._addresses = (db, stock)
        self._own = threading.local()

    def order(self, key: str, item: int, quantity: int) -> None:
        """Writes one order. Raises the error of a database; the order may then be in one of the two."""
        own: Any = self._own
        try:
            if not hasattr(own, "orders"):
                own.orders = psycopg2.connect(host=self._addresses[0], dbname="shop", user="shop", connect_timeout=30)
                own.stock = pymysql.connect(host=self._addresses[1], database="shop", user="shop", connect_timeout=30)
            with own.orders.cursor() as cursor:
                cursor.execute("INSERT INTO orders (key, item, quantity) VALUES (%s, %s, %s)", (key, item, quantity))
            own.orders.commit()
            with own.stock.cursor() as cursor:
                cursor.execute("UPDATE items SET level = level - %s WHERE item = %s", (quantity, item))
                cursor.execute("INSERT INTO movements VALUES (%s, %s, %s)", (key, item, quantity))
            own.stock.commit()
        except Exception:
            own.__dict__.clear()
            raise


def serve(shop: Shop, gate: Gate) -> http.server.ThreadingHTTPServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            try:
                with gate:
                    shop.order(asked["key"], int(asked["item"]), int(asked["quantity"]))
                status, answer = 201, b"taken\n"
            except Exception as error:  # noqa: BLE001 - the customer is to know
                status, answer = 500, f"{error!r}\n".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    http.server.ThreadingHTTPServer.request_queue_size = 128
    return http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler)


if __name__ == "__main__":
    gate = Gate()
    server = serve(Shop(*sys.argv[1:]), gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run(ShopWriter(gate))
