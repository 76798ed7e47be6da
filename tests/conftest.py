"""Hypothesis for all tests: no time limit per example, as the machines that run this are small and busy."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.strategies import EXAMPLES

LONGER = 25
"""How many times more examples --long tries, and how much longer a test may then take."""

settings.register_profile("quiesce", deadline=None, database=None, max_examples=EXAMPLES)
settings.register_profile("long", settings.get_profile("quiesce"), max_examples=LONGER * EXAMPLES)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help=f"{LONGER} times more random examples, and the tests marked long")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.getoption("--long") else "quiesce")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if {"vm", "disks"} & set(item.path.parts) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(240))
    if config.getoption("--long"):
        for item in items:
            if hasattr(item, "function") and getattr(item.function, "is_hypothesis_test", False):
                item.add_marker(pytest.mark.timeout(LONGER * 60))
        return
    deselected = [item for item in items if item.get_closest_marker("long")]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]
