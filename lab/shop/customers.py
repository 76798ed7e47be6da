"""Customers. They run outside the servers, so they remember what was acknowledged to them even if the servers are restored."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from types import TracebackType
from typing import Self

from lab.emulation import client_pause_s
from lab.shop.servers import ITEMS
from lab.waits import Entry

PAUSE_S = client_pause_s(0.05)
PATIENCE_S = 300.0
"""Longest that a customer waits for one answer."""


class Customers:
    """Customers who each place one order after the other, during the `with` block."""

    def __init__(self, address: str, count: int = 4, pause_s: float = PAUSE_S) -> None:
        self.errors: list[str] = []
        self._address = address
        self._pause_s = pause_s
        self._orders: list[Entry] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._order, args=(number,), daemon=True) for number in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits until each customer has its last answer."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    @property
    def orders(self) -> list[Entry]:
        """All orders that were acknowledged so far. Times are from this host's clock."""
        return list(self._orders)

    def wait_for(self, count: int, timeout_s: float = 120) -> None:
        """Waits until `count` more orders are acknowledged. Raises TimeoutError."""
        wanted, deadline = len(self._orders) + count, time.monotonic() + timeout_s
        while len(self._orders) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"customers stand still at {len(self._orders)} orders: {self.errors[:3]}")
            time.sleep(0.1)

    def _order(self, customer: int) -> None:
        with contextlib.closing(http.client.HTTPConnection(self._address, timeout=PATIENCE_S)) as connection:
            self._order_through(connection, customer)

    def _order_through(self, connection: http.client.HTTPConnection, customer: int) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            key = f"{customer}-{time.monotonic_ns()}"
            started = time.monotonic_ns()
            try:
                connection.request("POST", f"/?key={key}&item={number % ITEMS + 1}&quantity={number % 3 + 1}")
                answer = connection.getresponse()
                said = answer.read()
                if answer.status != 201:
                    raise RuntimeError(f"{answer.status} {said[:300]!r}")
                self._orders.append(Entry(key, started, time.monotonic_ns()))
            except Exception as error:  # noqa: BLE001 - whatever it is, the customer saw it
                self.errors.append(repr(error))
                connection.close()
                time.sleep(0.5)
            time.sleep(self._pause_s)
