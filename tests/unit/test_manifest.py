"""catalog/manifest.py, catalog/seal.py and model/soundness.py: what a file beside the images may say, and who said it."""

from __future__ import annotations

import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.catalog import manifest
from quiesce.catalog.manifest import Loaded, Manifest
from quiesce.catalog.seal import Seal
from quiesce.model.errors import QuiesceError
from quiesce.model.fingerprints import Fingerprint
from quiesce.model.reports import WriterReport
from quiesce.model.soundness import require_sound
from quiesce.model.tree import DiskImage, GroupPart, Tree
from tests.samples import node
from tests.strategies import JSON, NASTY, almost, examples, of

PRINT = Fingerprint(393216, "1767225600.123456789", "qcow2 1048576 base.qcow2")
A = Manifest(node("a"), "<domain/>", {"/images/a.vda.qcow2": PRINT})


class Fixed(Seal):
    """With a key that needs no file."""

    def __init__(self, key: bytes = b"k" * 32) -> None:
        super().__init__(Path("/nowhere"), Path("/nowhere"))
        self._key = key


SEAL = Fixed()
GOOD = json.loads(manifest.dump(A, SEAL))


def changed(path: str, value: Any) -> bytes:
    """The good manifest with another value at `checkpoint.disks.0.path`, and a seal that fits it."""
    whole = json.loads(json.dumps(GOOD))
    *above, last = path.split(".")
    place = whole
    for step in above:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[int(last) if isinstance(place, list) else last] = value
    whole.pop("seal", None)
    return json.dumps({**whole, "seal": SEAL.of(manifest._canonical(whole))}).encode()


SOUND = st.builds(
    lambda base, name, warnings, writers, phases: replace(
        base, name=name, warnings=warnings, writers=writers, phases_us=phases
    ),
    st.just(node("a", targets=("vda", "vdb"))),
    st.text(min_size=1, max_size=50).filter(lambda name: name.isprintable() and name == name.strip()),
    st.lists(NASTY, max_size=3).map(tuple),
    of(tuple[WriterReport, ...], NASTY),
    st.dictionaries(NASTY, st.integers(0, 2**40), max_size=3),
)


@given(SOUND, st.dictionaries(st.sampled_from(["/images/a.vda.qcow2", "/images/a.vdb.qcow2"]), of(Fingerprint, NASTY)))
def test_a_manifest_holds_all_of_a_checkpoint(checkpoint, prints):
    """Broken: a catalog made again from its manifests would not be the one that was lost."""
    whole = Manifest(checkpoint, "<domain>\u202e\U0001f600</domain>", prints)
    assert manifest.load(manifest.dump(whole, SEAL), SEAL) == Loaded(whole, sealed=True)


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_other_file_is_refused(content):
    """Broken: one stray file among the images would stop the recovery of a catalog."""
    with pytest.raises(QuiesceError, match="not a manifest"):
        manifest.load(content, SEAL)


@given(st.just(GOOD).flatmap(almost))
@examples(300)
def test_a_changed_manifest_is_refused_or_has_no_seal_and_can_be_used(value):
    """Broken: a changed manifest would be believed; or one that is accepted without its seal end in a traceback, or never."""
    try:
        found = manifest.load(json.dumps(value).encode(), SEAL)
    except QuiesceError:
        return
    assert found.sealed == (value == GOOD)
    require_sound(found.manifest.checkpoint)
    tree = Tree.of([found.manifest.checkpoint, node("b", parent="a")], "b")
    assert len(list(tree.subtree(tree.nodes[0]))) <= 2
    for other in found.manifest.fingerprints.values():
        PRINT.difference(other)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("checkpoint.created", "yesterday"),
        ("checkpoint.created", "2026-01-01T00:00:00"),
        ("checkpoint.created", "0001-01-01T00:00:00+00:00"),
        ("checkpoint.created", "9999-12-31T23:59:59-23:59"),
        ("checkpoint.name", ""),
        ("checkpoint.name", "a\x1b[2J"),
        ("checkpoint.name", "a\u202eb"),
        ("checkpoint.name", "x" * 101),
        ("checkpoint.id", "../../etc"),
        ("checkpoint.id", "a\nb"),
        ("checkpoint.vm_uuid", "/"),
        ("checkpoint.parent", "a"),
        ("checkpoint.parent", "\x00"),
        ("checkpoint.disks", []),
        ("checkpoint.disks.0.path", "images/a.qcow2"),
        ("checkpoint.disks.0.path", "/images/../etc/shadow"),
        ("checkpoint.disks.0.path", "/images/a\x00b"),
        ("checkpoint.disks.0.path", "/images/\ud800"),
        ("checkpoint.disks.0.target", "../vda"),
        ("checkpoint.disks.0.format", "raw,file=/etc/shadow"),
        ("checkpoint.stall_us", 2**64),
        ("checkpoint.stall_us", True),
        ("checkpoint.kind", "best"),
        ("checkpoint.proof", {"state": "proven", "tried": "yesterday", "text": "all is well", "seconds": 1}),
        ("checkpoint.proof", {"state": "perfect", "tried": "2026-01-01T00:00:00+00:00", "text": "all is well", "seconds": 1}),
        ("domain_xml", "<domain>"),
        ("domain_xml", "<!DOCTYPE d [<!ENTITY a 'b'>]><domain/>"),
        ("domain_xml", "<a>" * 100 + "</a>" * 100),
        ("domain_xml", "<domain>\ud800</domain>"),
        ("fingerprints", {"/etc/shadow": {"size": 1, "written": "1", "header": "raw 1"}}),
        ("made", ["/any/file"]),
        ("format", 3),
        ("format", "4"),
    ],
)
def test_what_no_checkpoint_can_be_is_refused(path, value):
    """Broken: one of these reached a shell of root as a path, a terminal as a command, or a traceback."""
    with pytest.raises(QuiesceError, match="not a manifest"):
        manifest.load(changed(path, value), SEAL)


@pytest.mark.parametrize(
    "content",
    [b"[" * 200_000, b'{"a":' * 200_000, b" " * (manifest.MAX_BYTES + 1), b"1" * 5000, b'{"format": 1e999}', b"\xff\xfe"],
)
def test_what_costs_much_is_refused_at_once(content):
    """Broken: one strange file among the images would end the recovery of a catalog, or take all memory."""
    with pytest.raises(QuiesceError, match="not a manifest"):
        manifest.load(content, SEAL)


def test_a_definition_takes_no_more_memory_than_it_is_worth():
    """Broken: entities of entities would fill the memory of the host."""
    bomb = "<!DOCTYPE d [" + "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 30)) + "]><d>&e29;</d>"
    tracemalloc.start()
    try:
        with pytest.raises(QuiesceError):
            manifest.load(changed("domain_xml", bomb), SEAL)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_only_this_catalogs_seal_fits():
    """Broken: what anybody wrote beside the images would be believed."""
    other = manifest.dump(A, Fixed(b"x" * 32))
    assert manifest.load(other, SEAL) == Loaded(A, sealed=False)
    for seal in ("", "0" * 64, None, 7, [], "é"):
        assert not manifest.load(json.dumps({**GOOD, "seal": seal}).encode(), SEAL).sealed
    renamed = {**GOOD, "checkpoint": {**GOOD["checkpoint"], "name": "b"}}
    assert not manifest.load(json.dumps(renamed).encode(), SEAL).sealed


def test_a_key_is_made_once_and_nobody_else_can_read_it(tmp_path):
    """Broken: whoever may read the key could write manifests that quiesce believes."""
    path = tmp_path / "state" / "seal.key"
    seal = Seal(path, tmp_path / "locks").of(b"x")
    assert (path.stat().st_mode & 0o777, len(path.read_bytes())) == (0o600, 32)
    assert Seal(path, tmp_path / "locks").of(b"x") == seal
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("spoil", ["mode", "short", "link", "fifo"])
def test_a_key_that_others_could_have_is_not_used(spoil, tmp_path):
    """Broken: a key that everybody can read, or that somebody put there, would seal what quiesce believes."""
    path = tmp_path / "seal.key"
    path.write_bytes(b"k" * 32)
    path.chmod(0o600)
    if spoil == "mode":
        path.chmod(0o640)
    elif spoil == "short":
        path.write_bytes(b"k")
    elif spoil == "link":
        path.rename(tmp_path / "other")
        path.symlink_to("other")
    else:
        path.unlink()
        os.mkfifo(path, 0o600)
    with pytest.raises(QuiesceError, match=r"seal\.key"):
        Seal(path, tmp_path / "locks").of(b"x")


def test_a_manifest_is_known_by_its_name():
    """Broken: a catalog could not be made again, or a stranger's file be taken for one of ours, and removed with it."""
    id = "0123456789abcdef" * 2
    assert manifest.name(id) == f"quiesce-{id}.json"
    assert manifest.checkpoint_id(manifest.name(id)) == id
    for other in ("quiesce-.json", f"quiesce-{id}.json.bak", f"quiesce-{id}0.json", f"quiesce-{id.upper()}.json", f"{id}.json"):
        assert manifest.checkpoint_id(other) is None
    assert manifest.checkpoint_id(manifest.name(id) + "\n") is None


# -- the tree of whatever records there are


@given(st.lists(st.tuples(st.integers(0, 9) | st.none(), st.booleans()), max_size=10), st.integers(0, 12))
@examples(200)
def test_every_tree_ends_whatever_the_parents_are(parents, head):
    """Broken: parents in a circle would make `tree` never end, or leave checkpoints out."""
    nodes = [
        node(str(index), parent=None if parent is None else str(parent), hidden=hidden)
        for index, (parent, hidden) in enumerate(parents)
        if parent != index
    ]
    tree = Tree.of(nodes, str(head))
    drawn = [found.id for root in tree.children(None) for found in tree.subtree(root)]
    assert sorted(drawn) == sorted(each.id for each in tree.checkpoints)
    for each in nodes:
        assert len(tree.ancestors(each.id)) <= len(nodes)
        tree.visible(each.id)


def test_a_deep_tree_is_no_matter_of_the_stack():
    """Broken: a long line of checkpoints would end in a RecursionError."""
    nodes = [node(f"n{number}", parent=f"n{number - 1}" if number else None) for number in range(1500)]
    assert len(list(Tree.of(nodes, None).subtree(nodes[0]))) == 1500


def test_a_disk_and_a_group_are_looked_at():
    """Broken: two images for one disk, or a group whose name is a path."""
    two = (DiskImage("vda", "/i/a", "qcow2"), DiskImage("vda", "/i/b", "qcow2"))
    group = GroupPart("../g", "shop", "now", ("a",), 0)
    for wrong in (replace(node("a"), disks=two), replace(node("a"), group=group)):
        with pytest.raises(ValueError, match=r"disks|group"):
            require_sound(wrong)
