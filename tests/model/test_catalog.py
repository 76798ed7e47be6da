"""catalog/store.py against a plain dictionary, over any sequence of changes."""

from __future__ import annotations

import tempfile

from hypothesis import given
from hypothesis import strategies as st

from quiesce.catalog.store import Catalog
from quiesce.model.errors import NameTakenError
from quiesce.model.tree import Checkpoint
from tests.samples import node
from tests.strategies import examples

_VMS = ["uuid-1", "uuid-2"]
_NAMES = ["before", "after", "x"]
_HEADS = st.none() | st.sampled_from(_NAMES)
_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "remove", "head", "reopen"]), st.sampled_from(_VMS), st.sampled_from(_NAMES), _HEADS
    ),
    max_size=12,
)


@given(_CHANGES)
@examples(25)
def test_the_catalog_is_what_was_put_into_it(changes):
    """Broken: after some sequence of checkpoints, deletions and restores the catalog would show another tree."""
    expected: dict[str, dict[str, Checkpoint]] = {vm: {} for vm in _VMS}
    heads: dict[str, str | None] = dict.fromkeys(_VMS)
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/catalog.db"
        catalog = Catalog(url)
        for number, (verb, vm, name, head) in enumerate(changes):
            if verb == "add":
                new = node(f"id{number:02}", name=name, vm_uuid=vm)
                try:
                    catalog.add(new, f"<{new.id}/>", head_parent=head)
                except NameTakenError:
                    assert name in expected[vm]
                else:
                    assert name not in expected[vm]
                    expected[vm][name], heads[vm] = new, head
            elif verb == "remove" and name in expected[vm]:
                catalog.remove(expected[vm].pop(name), head_parent=head)
                heads[vm] = head
            elif verb == "head":
                catalog.set_head("host1", vm, head)
                heads[vm] = head
            elif verb == "reopen":
                catalog.close()
                catalog = Catalog(url)
            for uuid in _VMS:
                tree = catalog.tree("host1", uuid)
                assert tree.checkpoints == tuple(sorted(expected[uuid].values(), key=lambda checkpoint: checkpoint.id))
                assert tree.head_parent == heads[uuid]
        for nodes in expected.values():
            for checkpoint in nodes.values():
                assert catalog.domain_xml(checkpoint.id) == f"<{checkpoint.id}/>"
        catalog.close()
