"""catalog/lock.py"""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from quiesce.catalog import lock
from quiesce.model.errors import BusyError


def test_one_at_a_time_and_the_holder_is_named(tmp_path):
    """Broken: two operations would work on one VM's disks at once."""
    with lock.hold(tmp_path / "locks", "web1", "quiesce delete web1"):
        with pytest.raises(BusyError, match=rf"quiesce delete web1 \(process {os.getpid()}\)") as refusal:
            with lock.hold(tmp_path / "locks", "web1", "quiesce restore web1"):
                pass
        assert refusal.value.exit_code == 9
        with lock.hold(tmp_path / "locks", "web2", "quiesce restore web2"):
            pass
    with lock.hold(tmp_path / "locks", "web1", "quiesce restore web1"):
        pass


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_frees_it(failure, tmp_path):
    """Broken: after a failed operation the VM would be locked for good."""
    with pytest.raises(failure), lock.hold(tmp_path, "web1", "first"):
        raise failure
    with lock.hold(tmp_path, "web1", "second"):
        pass


def test_the_death_of_its_holder_frees_it(tmp_path):
    """Broken: after a kill -9 an administrator would have to find and remove a file."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with lock.hold(tmp_path, "web1", "quiesce checkpoint web1"):
                os.write(send, b"held")
                os.read(os.pipe()[0], 1)
        finally:
            os._exit(1)
    os.close(send)
    try:
        assert os.read(receive, 4) == b"held"
        os.close(receive)
        with pytest.raises(BusyError, match=f"process {child}"), lock.hold(tmp_path, "web1", "mine"):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    with lock.hold(tmp_path, "web1", "mine"):
        pass


def test_waiting_takes_its_turn_after_the_holder(tmp_path):
    """Broken: two first commands would make the catalog's tables at once; or the second would fail instead of waiting."""
    go, start = os.pipe()
    receive, send = os.pipe()
    child = os.fork()  # before the lock is taken: a child would inherit it
    if child == 0:
        try:
            os.close(start)
            os.read(go, 1)
            with lock.wait(tmp_path / "locks", "schema"):
                os.write(send, b"has it")
        finally:
            os._exit(0)
    os.close(go)
    os.close(send)
    with lock.wait(tmp_path / "locks", "schema"):
        os.close(start)
        assert not select.select([receive], [], [], 0.1)[0]
    assert os.read(receive, 6) == b"has it"
    os.close(receive)
    assert os.waitpid(child, 0)[1] == 0
    with lock.wait(tmp_path / "locks", "schema"), lock.wait(tmp_path / "locks", "another"):
        pass


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_ends_the_wait_of_others(failure, tmp_path):
    """Broken: a catalog that could not be opened once could never be opened again."""
    with pytest.raises(failure), lock.wait(tmp_path, "schema"):
        raise failure
    with lock.hold(tmp_path, "schema", "next"):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"what": 1}', "\x00"])
def test_a_holder_that_has_said_nothing_yet_is_still_one(content, tmp_path):
    """Broken: the error about a lock would itself be an error."""
    with lock.hold(tmp_path, "web1", "first"):
        Path(tmp_path / "web1.lock").write_text(content)
        with pytest.raises(BusyError, match=f"process {os.getpid()}|does not tell"), lock.hold(tmp_path, "web1", "second"):
            pass
