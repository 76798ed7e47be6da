"""agent/links.py: where a path leads, told before anything on the way is touched."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from quiesce.agent import links


def way(path: str, top: Path, owners: tuple[int, ...] = ()) -> list[str]:
    return list(links.walk(path, str(top), owners))


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "up").symlink_to("/a")
    (tmp_path / "a/side").symlink_to("b/../b")
    (tmp_path / "a/round").symlink_to("round")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("/", "/"),
        ("//a/./b/", "/a/b"),
        ("/up/b", "/a/b"),
        ("/a/side", "/a/b"),
        ("/a/b/..", "/a"),
        ("/../a", "/a"),
        ("/up", "/a"),
    ],
)
def test_a_path_ends_where_the_kernel_would_end(path, end, top):
    """Broken: a server would be reached, or its files be looked at, at another place than it has them."""
    assert way(path, top)[-1] == end


def test_a_place_is_told_before_it_is_touched(top, monkeypatch):
    """Broken: whoever looks for a mount that does not answer would hang at it."""
    touched = []
    monkeypatch.setattr(os, "readlink", lambda path, read=os.readlink: touched.append(path) or read(path))
    for place in links.walk("/up/b", str(top)):
        if place == "/a/b":
            break
    assert f"{top}/a/b" not in touched


@pytest.mark.parametrize(
    ("path", "number"), [("/a/none/c", errno.ENOENT), ("/a/none/..", errno.ENOENT), ("/a/round", errno.ELOOP)]
)
def test_a_path_that_leads_nowhere_is_an_error(path, number, top):
    """Broken: the directory above would be taken for it, or a look would never end."""
    with pytest.raises(links.NoWayError) as raised:
        way(path, top)
    assert raised.value.errno == number


def test_a_strangers_link_is_not_followed(top):
    """Broken: a user could lead root from a server's path to another one."""
    assert way("/up", top, (os.geteuid(),))[-1] == "/a"
    with pytest.raises(links.NoWayError, match="/up is a stranger's link"):
        way("/up", top, (os.geteuid() + 1,))
    assert way("/a/b", top, (os.geteuid() + 1,))[-1] == "/a/b"
