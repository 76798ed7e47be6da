"""For all tests: how many random examples, which come first, and an end to each whatever it does."""

from __future__ import annotations

import faulthandler
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from tests.strategies import EXAMPLES
from tests.times import Times

LONGER = 25
"""How many times more examples --long tries, and how much longer a test may then take."""

HARD = 60
"""Seconds after its own time-out at which a test's process is ended, should it hang where Python cannot end the test."""

# No time limit per example, as the machines that run this are small and busy. To shrink an example that failed can take
# longer than the test may, which would then end without a word of it.
settings.register_profile(
    "quiesce", deadline=None, database=None, max_examples=EXAMPLES, phases=(Phase.explicit, Phase.generate), print_blob=True
)
settings.register_profile("long", settings.get_profile("quiesce"), max_examples=LONGER * EXAMPLES, phases=tuple(Phase))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help=f"{LONGER} times more random examples, and the tests marked long")

    parser.addoption("--times", type=Path, help="add to this file how long each test took, for `python -m tests.times`")
    parser.addoption("--tier", default="tests", help="what to call these tests there")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.getoption("--long") else "quiesce")
    if config.getoption("--times") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Times(config.getoption("--times"), config.getoption("--tier")))


def seconds_at_most(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0] if marker else item.config.getini("timeout"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    faulthandler.dump_traceback_later(seconds_at_most(item) + HARD, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if {"vm", "disks"} & set(item.path.parts) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(240))
    items.sort(key=seconds_at_most, reverse=True)  # whatever may take long first, so that all workers end together
    if config.getoption("--long"):
        for item in items:
            if hasattr(item, "function") and getattr(item.function, "is_hypothesis_test", False):
                item.add_marker(pytest.mark.timeout(LONGER * 60))
        return
    deselected = [item for item in items if item.get_closest_marker("long")]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]
