"""catalog/manifest.py"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.catalog import manifest
from quiesce.model.errors import QuiesceError
from quiesce.model.tree import Checkpoint
from tests.samples import node
from tests.strategies import JSON, NASTY, almost, examples, of

GOOD = json.loads(manifest.dump(node("a"), "<domain/>"))


@given(of(Checkpoint, NASTY), st.text())
def test_a_manifest_holds_all_of_a_checkpoint(checkpoint, xml):
    """Broken: a catalog made again from its manifests would not be the one that was lost."""
    assert manifest.load(manifest.dump(checkpoint, xml)) == (checkpoint, xml)


def test_a_manifest_is_the_same_each_time():
    """Broken: two copies of one checkpoint could not be compared."""
    assert manifest.dump(node("a"), "<domain/>") == manifest.dump(node("a"), "<domain/>")
    assert manifest.name("f00d") == "quiesce-f00d.json"


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_other_file_is_refused(content):
    """Broken: one stray file among the images would stop the recovery of a catalog."""
    with pytest.raises(QuiesceError, match="not a manifest"):
        manifest.load(content)


@given(st.just(GOOD).flatmap(almost))
@examples(200)
def test_a_damaged_manifest_is_refused_or_says_what_it_says(value):
    """Broken: a damaged manifest would end in a traceback, or give a checkpoint of the wrong types."""
    try:
        checkpoint, xml = manifest.load(json.dumps(value).encode())
    except QuiesceError:
        return
    assert manifest.load(manifest.dump(checkpoint, xml)) == (checkpoint, xml)


def test_a_deeply_nested_file_is_refused():
    """Broken: one strange file among the images would end the recovery of a catalog with a RecursionError."""
    with pytest.raises(QuiesceError, match="not a manifest"):
        manifest.load(b"[" * 200_000)


def test_a_manifest_of_the_future_is_refused():
    """Broken: a newer quiesce's manifest would be half understood."""
    with pytest.raises(QuiesceError, match="known format"):
        manifest.load(json.dumps({**GOOD, "format": manifest.FORMAT + 1}).encode())
    for key in GOOD:
        with pytest.raises(QuiesceError, match="not a manifest"):
            manifest.load(json.dumps({name: item for name, item in GOOD.items() if name != key}).encode())
