"""catalog/manifest.py"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.catalog import manifest
from quiesce.catalog.manifest import Manifest
from quiesce.model.errors import QuiesceError
from quiesce.model.fingerprints import Fingerprint
from quiesce.model.tree import Checkpoint
from tests.samples import node
from tests.strategies import JSON, NASTY, almost, examples, of

PRINT = Fingerprint(393216, "1767225600.123456789", "qcow2 1048576 base.qcow2")
A = Manifest(node("a"), "<domain/>", ("/images/b.qcow2", "/images/a.vda.qcow2"), {"/images/a.vda.qcow2": PRINT})
GOOD = json.loads(manifest.dump(A))
PRINTS = st.dictionaries(NASTY, of(Fingerprint, NASTY), max_size=3)


@given(st.builds(Manifest, of(Checkpoint, NASTY), st.text(), st.lists(NASTY).map(sorted).map(tuple), PRINTS))
def test_a_manifest_holds_all_of_a_checkpoint(whole):
    """Broken: a catalog made again from its manifests would not be the one that was lost."""
    assert manifest.load(manifest.dump(whole)) == whole


def test_a_manifest_is_the_same_each_time():
    """Broken: two copies of one checkpoint could not be compared."""
    assert manifest.dump(A) == manifest.dump(replace(A, made=A.made[::-1]))


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
        found = manifest.load(json.dumps(value).encode())
    except QuiesceError:
        return
    again = manifest.load(manifest.dump(found))
    assert again == replace(found, made=tuple(sorted(found.made)))


def test_a_deeply_nested_file_is_refused():
    """Broken: one strange file among the images would end the recovery of a catalog with a RecursionError."""
    with pytest.raises(QuiesceError, match="not a manifest"):
        manifest.load(b"[" * 200_000)


def test_a_manifest_of_the_future_is_refused():
    """Broken: a newer quiesce's manifest would be half understood."""
    with pytest.raises(QuiesceError, match="not a manifest of format 3"):
        manifest.load(json.dumps({**GOOD, "format": manifest.FORMAT + 1}).encode())
    for key in GOOD:
        with pytest.raises(QuiesceError, match="not a manifest"):
            manifest.load(json.dumps({name: item for name, item in GOOD.items() if name != key}).encode())


def test_a_manifest_of_an_older_quiesce_is_read():
    """Broken: after an upgrade, a lost catalog could not be made again from what the older quiesce wrote."""
    old = {name: item for name, item in GOOD.items() if name != "fingerprints"} | {"format": 2}
    assert manifest.load(json.dumps(old).encode()) == replace(A, made=tuple(sorted(A.made)), fingerprints={})


def test_a_manifest_is_known_by_its_name():
    """Broken: a catalog could not be made again, or a stranger's file be taken for one of ours, and removed with it."""
    id = "0123456789abcdef" * 2
    assert manifest.name(id) == f"quiesce-{id}.json"
    assert manifest.checkpoint_id(manifest.name(id)) == id
    for other in ("quiesce-.json", f"quiesce-{id}.json.bak", f"quiesce-{id}0.json", f"quiesce-{id.upper()}.json", f"{id}.json"):
        assert manifest.checkpoint_id(other) is None
    assert manifest.checkpoint_id(manifest.name(id) + "\n") is None
