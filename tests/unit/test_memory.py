"""agent/memory.py"""

from __future__ import annotations

import pytest

from quiesce.agent import memory


@pytest.fixture(autouse=True)
def not_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path))


def test_what_was_kept_comes_back():
    """Broken: a lock order that took seconds to learn would have to be learned again for every checkpoint."""
    memory.retain("order", {"/data": {"shop": ["orders"]}})
    assert memory.recall("order") == {"/data": {"shop": ["orders"]}}
    assert memory.recall("other") == {}


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "5"])
def test_a_damaged_memory_is_no_memory(content, tmp_path):
    """Broken: one damaged file in /run would refuse an application until the next boot."""
    (tmp_path / "order.json").write_text(content)
    assert memory.recall("order") == {}


def test_a_memory_that_cannot_be_kept_is_no_error(tmp_path, monkeypatch):
    """Broken: a full /run would fail checkpoints."""
    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path / "gone"))
    memory.retain("order", {"a": 1})
