"""model/tree.py"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.model.errors import NotFoundError
from quiesce.model.tree import Tree
from tests.samples import node


def test_a_name_is_found_before_an_id():
    """Broken: somebody who names a checkpoint like another one's id could not reach it, or would reach the other."""
    first, second = node("one", name="two"), node("two", name="one")
    tree = Tree.of([first, second], None)
    assert tree.find("two") is first
    assert tree.find("one") is second


def test_an_id_is_found_where_no_name_is():
    """Broken: a script that keeps ids could not use them."""
    first = node("f00d", name="before")
    assert Tree.of([first], None).find("f00d") is first


def test_what_is_not_there_is_said_so():
    """Broken: a typing mistake would end in a traceback."""
    with pytest.raises(NotFoundError, match="'befor'"):
        Tree.of([node("f00d", name="before")], None).find("befor")
    assert not Tree.of([], None).has_name("before")


@given(st.permutations([node(str(number), created=f"2026-01-0{number // 2 + 1}T00:00:00+00:00") for number in range(6)]))
def test_the_order_is_that_of_time_whatever_the_catalog_says(nodes):
    """Broken: the tree would be drawn in another order each time."""
    assert [item.id for item in Tree.of(nodes, None).checkpoints] == list("012345")


def test_children_and_roots():
    """Broken: a checkpoint with others based on it could be deleted."""
    nodes = [node("a"), node("b", parent="a"), node("c", parent="a"), node("d", parent="c"), node("e")]
    tree = Tree.of(nodes, "d")
    assert [item.id for item in tree.children("a")] == ["b", "c"]
    assert [item.id for item in tree.children(None)] == ["a", "e"]
    assert tree.children("d") == ()
    assert tree.get("c") is nodes[2]
    assert tree.get(None) is None
    assert tree.get("x") is None
    assert tree.has_name("d")


def test_a_disks_image_is_found_by_its_target():
    """Broken: one disk would be compared with another one's image, or a disk that came later stop everything."""
    assert node("a", targets=("vda", "vdb")).image("vdb").path == "/images/a.vdb.qcow2"
    assert node("a").image("vdb") is None
