"""model/chains.py"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.model.chains import Chains, Image, as_declared

TREE = Chains({"base": None, "a": "base", "b": "a", "c": "a", "now": "c", "clone": "b", "alone": None, "device": "/dev/sdb"})
"""base - a - (b - clone, c - now)"""
OWNED = {"base", "a", "now", "b"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("now", ("now", "c", "a", "base")),
        ("base", ("base",)),
        ("device", ("device", "/dev/sdb")),
        ("gone", ("gone",)),
        (None, ()),
    ],
)
def test_a_chain_is_the_image_and_all_below_it_nearest_first(path, expected):
    """Broken: an image that another reads through would be removed; the lowest may be a device nobody can look into."""
    assert TREE.chain(path) == expected


def test_images_that_lie_on_each_other_do_not_hang_it():
    """Broken: a damaged header would hang every operation, with its lock held."""
    circle = Chains({"a": "b", "b": "c", "c": "b"})
    assert circle.chain("a") == ("a", "b", "c")
    assert circle.readers("b") == {"a", "c"}
    assert circle.base("b", {"b", "c"}) == "c"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a", ("b", "c")), ("b", ("b", "c")), ("c", ("c", "b")), ("self", ("self",)), ("sound", ()), ("gone", ())],
)
def test_images_whose_backing_files_lead_back_to_them(path, expected):
    """Broken: `qemu-img create` would be asked for an overlay of such an image, which never ends, and takes all memory."""
    assert Chains({"a": "b", "b": "c", "c": "b", "self": "self", "sound": "x", "x": None}).circle(path) == expected


def test_what_is_needed_is_all_that_is_read_through():
    """Broken: a checkpoint would lose what lies below it."""
    assert TREE.needed(["b", "alone"]) == {"b", "a", "base", "alone"}
    assert TREE.needed([]) == set()


def test_readers_are_those_above_at_any_distance():
    """Broken: an image would be removed, or written, under one that lies further up."""
    assert TREE.readers("a") == {"b", "c", "now", "clone"}
    assert TREE.readers("now") == set()
    assert TREE.readers("gone") == set()


def test_what_lies_right_on_an_image():
    """Broken: of two branches, one would stay behind on a file that is to be removed."""
    assert TREE.directly_on("a") == ["b", "c"]
    assert TREE.directly_on("clone") == []


def test_merged_images_in_between_are_passed_over():
    """Broken: a checkpoint would be taken to be based on another one's old file, or on nothing."""
    assert TREE.base("now", OWNED) == "a"
    assert TREE.base("clone", OWNED) == "b"
    assert TREE.base("base", OWNED) is None
    assert TREE.base("gone", OWNED) is None


def test_dependents_are_the_nearest_owned_above_on_each_branch():
    """Broken: an image that two checkpoints still need would be merged into one of them, and the other spoilt."""
    assert TREE.dependents("a", OWNED) == ["b", "now"]
    assert TREE.dependents("base", OWNED) == ["a"]
    assert TREE.dependents("b", OWNED) == []
    assert TREE.dependents("base", {"base", "now"}) == ["now"]


@pytest.mark.parametrize(
    ("base", "top", "expected"),
    [
        ("base", "a", set()),
        ("a", "b", {"c", "now"}),
        ("a", "now", {"b", "clone"}),
        ("a", "c", {"b", "clone"}),
        ("base", "b", {"c", "now"}),
        ("c", "now", set()),
    ],
)
def test_strangers_are_those_that_read_the_base_past_the_top(base, top, expected):
    """Broken: a merge would change what somebody's clone, or another checkpoint, reads."""
    assert TREE.strangers(base, top, TREE.below) == expected


@st.composite
def forests(draw: st.DrawFn) -> dict[str, str | None]:
    """Any images, each on one made before it or on none."""
    below: dict[str, str | None] = {}
    for number in range(draw(st.integers(1, 9))):
        below[f"i{number}"] = draw(st.sampled_from([None, *below]))
    return below


def content(below: dict[str, str | None], values: dict[str, dict[int, str]], path: str | None) -> dict[int, str]:
    return {} if path is None else content(below, values, below[path]) | values[path]


@given(forests(), st.data())
def test_only_strangers_see_a_merge(below, data):
    """Broken: somebody would be told to wait for nothing, or not be told, and read what was never theirs."""
    chains = Chains(below)
    candidates = [(base, top) for top in below for base in chains.chain(top)[1:]]
    if not candidates:
        return
    base, top = data.draw(st.sampled_from(candidates))
    values = {path: {0: path, number + 1: path} for number, path in enumerate(below)}
    before = {path: content(below, values, path) for path in below}
    for path in reversed(chains.chain(top)[: chains.chain(top).index(base)]):
        values[base] = values[base] | values[path]
    between = set(chains.chain(top)) - {top}
    changed = {path for path in below if path not in between and content(below, values, path) != before[path]}
    assert changed == chains.strangers(base, top, below)


def test_an_image_between_that_is_nobodys_is_a_stranger():
    """Broken: what somebody keeps, as with virsh snapshot-create, would be merged over."""
    chains = Chains({"base": None, "between": "base", "merged": "between", "top": "merged"})
    assert chains.strangers("base", "top", {"merged"}) == {"between"}
    assert chains.strangers("between", "top", {"merged"}) == set()


def image(path: str, backing: str | None = None, backing_format: str | None = None) -> Image:
    return Image(path, "qcow2", backing, 1, 0, "", size=7, backing_format=backing_format)


@pytest.mark.parametrize("declared", [["base"], []], ids=["by a record", "by an overlay"])
def test_what_is_declared_raw_is_raw_whatever_a_guest_wrote(declared):
    """Broken: with the header of a qcow2 image in its raw disk, a guest would have a file of the host as its disk."""
    images = {"base": image("base", "/etc/shadow", "raw"), "head": image("head", "base", "raw")}
    found = as_declared(images, ["base" if declared else "head"], declared)
    assert found["base"] == Image("base", "raw", None, 7, 0, "", 7)
    assert found["head"] == images["head"]


def test_the_header_of_a_stranger_declares_nothing():
    """Broken: whoever writes a header into any file beside ours would cut our chains, and what lies below would be removed."""
    images = {"ours": image("ours", "below", "qcow2"), "below": image("below"), "stranger": image("stranger", "ours", "raw")}
    assert as_declared(images, ["ours"], []) == images


def test_images_that_are_based_on_each_other_end_it():
    """Broken: a damaged header would hang every operation."""
    images = {"a": image("a", "b", "qcow2"), "b": image("b", "a", "qcow2")}
    assert as_declared(images, ["a"], []) == images
