"""model/tree.py"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.model.errors import NotFoundError
from quiesce.model.tree import MachineFile, Role, Tree
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
    """Broken: the tree would be drawn as another one."""
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


def test_files_are_found_by_what_they_are_for():
    """Broken: a VM would get its TPM's state for its UEFI variables, or a file of a checkpoint be removed as nobody's."""
    files = (MachineFile(Role.NVRAM, "/i/a.nvram"), MachineFile(Role.MEMORY, "/i/a.memory"))
    made = node("a", targets=("vda", "vdb"), files=files)
    assert made.file(Role.MEMORY) is files[1]
    assert made.file(Role.TPM) is None
    assert made.paths() == {"/images/a.vda.qcow2", "/images/a.vdb.qcow2", "/i/a.nvram", "/i/a.memory"}


HIDDEN = Tree.of(
    [
        node("a"),
        node("b", parent="a", hidden=True),
        node("c", parent="b", hidden=True),
        node("d", parent="c"),
        node("e", parent="b"),
        node("f", parent="d"),
        node("g", hidden=True),
        node("h", parent="g"),
    ],
    "c",
)


def test_a_hidden_checkpoint_is_nobodys_to_find():
    """Broken: a deleted checkpoint could be restored although its content is gone, or its name never be used again."""
    assert [item.id for item in HIDDEN.checkpoints] == ["a", "d", "e", "f", "h"]
    assert not HIDDEN.has_name("b")
    with pytest.raises(NotFoundError):
        HIDDEN.find("b")
    with pytest.raises(NotFoundError):
        HIDDEN.match("b")
    assert HIDDEN.get("b").hidden
    new = node("new", name="b")
    assert Tree.of([*HIDDEN.nodes, new], None).find("b") is new


@pytest.mark.parametrize(
    ("id", "expected"), [("a", "a"), ("b", "a"), ("c", "a"), ("d", "d"), ("g", None), (None, None), ("gone", None)]
)
def test_where_something_stands_as_a_user_sees_it(id, expected):
    """Broken: a VM whose checkpoint was deleted would be drawn nowhere."""
    assert HIDDEN.visible(id) == expected


def test_children_of_hidden_checkpoints_hang_on_what_is_below_them():
    """Broken: a checkpoint on a deleted one would vanish from the tree that is shown."""
    assert [item.id for item in HIDDEN.children("a")] == ["d", "e"]
    assert [item.id for item in HIDDEN.children(None)] == ["a", "h"]
    assert HIDDEN.children("b") == ()


def test_a_subtree_is_all_that_a_user_sees_above_a_checkpoint():
    """Broken: `delete --subtree` would leave some of it, or take what stands beside it."""
    assert [item.id for item in HIDDEN.subtree(HIDDEN.find("a"))] == ["a", "d", "f", "e"]
    assert [item.id for item in HIDDEN.subtree(HIDDEN.find("e"))] == ["e"]


def test_ancestors_are_hidden_ones_too_and_end():
    """Broken: an image's owner would be mistaken, or a damaged catalog hang every operation."""
    assert [item.id for item in HIDDEN.ancestors("f")] == ["f", "d", "c", "b", "a"]
    assert HIDDEN.ancestors(None) == HIDDEN.ancestors("gone") == ()
    circle = Tree.of([node("x", parent="y"), node("y", parent="x")], None)
    assert [item.id for item in circle.ancestors("y")] == ["y", "x"]


def test_a_pattern_names_all_that_match_and_a_name_itself_only():
    """Broken: `delete vm@2026-*` would delete others, or a checkpoint with a * in its name could not be deleted alone."""
    nodes = [node("1", name="day-1"), node("2", name="day-2"), node("3", name="day-*"), node("4", name="Day-4")]
    tree = Tree.of([*nodes, node("5", name="day-5", hidden=True)], None)
    assert tree.match("day-?") == (nodes[0], nodes[1], nodes[2])
    assert tree.match("day-*") == (nodes[2],)
    assert tree.match("day-[12]") == (nodes[0], nodes[1])
    assert tree.match("4") == (nodes[3],)
    with pytest.raises(NotFoundError, match="'night-"):
        tree.match("night-*")
