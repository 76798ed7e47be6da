"""Records of the catalog that somebody damaged: each is named, and what only reads goes on with the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from quiesce.catalog.database import to_column
from quiesce.catalog.journal import interrupted
from quiesce.catalog.store import Catalog
from quiesce.model.errors import QuiesceError
from quiesce.model.groups import Group
from quiesce.model.names import CheckpointReference
from quiesce.model.settings import Settings
from quiesce.model.standing import Untouched
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.group import list_groups
from quiesce.operations.tree import show_checkpoint, tree
from quiesce.operations.vms import vms
from quiesce.results import to_json
from tests.samples import KEY, node
from tests.strategies import JSON, almost, examples
from tests.unit.fake_host import FakeVm
from tests.unit.world import World

GOOD = json.loads(to_column(node("a", parent="b", hidden=True)))
BAD = [
    "{",
    "null",
    "[" * 100_000,
    '{"id": 1}',
    {"created": "yesterday"},
    {"disks": []},
    {"parent": "../x"},
    {"vm_uuid": "other"},
]
"""The whole record, or fields of it."""


def damage(catalog: Catalog, value: str, where: str = "", *, table: str = "checkpoints", column: str = "body") -> None:
    with catalog.database.transaction() as connection:
        connection.execute(sa.text(f"UPDATE {table} SET {column} = :value {where}"), {"value": value})  # noqa: S608


@pytest.fixture
def vm(world: World) -> FakeVm:
    vm = world.vm()
    for name in ("a", "b"):
        world.take(vm, name)
    return vm


@pytest.mark.parametrize("body", BAD, ids=lambda body: str(body)[:20])
def test_a_damaged_record_is_named_and_the_others_are_shown(body, world, vm):
    """Broken: one damaged row would hide all checkpoints of the VM, or of all VMs."""
    world.take(world.vm("db1"))
    whole = world.tree(vm).find("b")
    id = whole.id
    damaged = body if isinstance(body, str) else json.dumps({**json.loads(to_column(whole)), **body})
    damage(world.catalog, damaged, f"WHERE id = '{id}'")
    assert [found.name for found in tree(world.context, "web1").checkpoints] == ["a"]
    assert show_checkpoint(world.context, CheckpointReference("web1", "a")).name == "a"
    assert any(id in text and "'b'" in text for text in world.warnings())
    rows = {row.vm: row for row in doctor(world.context, None, repair=True)}
    assert id in rows["web1"].found[0]
    assert rows["db1"].found == ()
    assert {item.name: item.checkpoints for item in vms(world.context)} == {"web1": 2, "db1": 1}


def test_nothing_is_changed_while_a_record_cannot_be_read(world, vm):
    """Broken: a merge or a deletion could take the images of the checkpoint that cannot be read."""
    id = world.tree(vm).find("b").id
    damage(world.catalog, "{", f"WHERE id = '{id}'")
    before = set(world.host.storage.files)
    for change in (
        lambda: delete(world.context, [CheckpointReference("web1", "a")]),
        lambda: world.restore(vm),
        lambda: world.take(vm, "c"),
    ):
        with pytest.raises(QuiesceError, match=id):
            change()
    assert set(world.host.storage.files) == before


def test_a_record_of_another_checkpoint_is_refused(world, vm):
    """Broken: a changed row would be written over another one."""
    first, second = (to_column(found) for found in world.tree(vm).nodes)
    damage(world.catalog, first)
    assert second != first
    with pytest.raises(QuiesceError, match="one of another checkpoint"):
        world.tree(vm)


@pytest.mark.parametrize("xml", ["<domain", "<a>" * 200 + "</a>" * 200, "<!DOCTYPE a><a/>", ""])
def test_a_damaged_definition_is_named(xml, world, vm):
    """Broken: a restore would end in a traceback, after the VM was stopped."""
    damage(world.catalog, xml, column="domain_xml")
    with pytest.raises(QuiesceError, match=world.tree(vm).find("a").id):
        world.restore(vm)
    assert vm.active()


def test_groups_that_can_be_read_are_listed(world, vm):
    """Broken: one damaged row would hide all groups."""
    for name in ("shop", "mail"):
        world.catalog.groups.put(Group(name), new=True)
    damage(world.catalog, "{", "WHERE name = 'mail'", table="groups")
    assert [item.group.name for item in list_groups(world.context)] == ["shop"]
    assert any("'mail'" in text for text in world.warnings())


def test_groups_of_groups_of_groups_take_no_time(world):
    """Broken: 30 groups that each contain the next one twice would be walked through 2**30 times."""
    for number in range(30):
        inner = (f"g{number + 1}",) * 2 if number < 29 else ()
        world.catalog.groups.put(Group(f"g{number}", groups=inner), new=True)
    assert len(list_groups(world.context)) == 30


READERS: dict[str, tuple[str, str, Callable[[Catalog], Any]]] = {
    "tree": ("checkpoints", "body", lambda catalog: to_json(catalog.checkpoints.tree(KEY))),
    "readable": ("checkpoints", "body", lambda catalog: to_json(catalog.checkpoints.readable(KEY)[0])),
    "parts": ("checkpoints", "body", lambda catalog: catalog.checkpoints.of_group("shop")),
    "definition": ("checkpoints", "domain_xml", lambda catalog: catalog.checkpoints.domain_xml("a")),
    "untouched": ("heads", "untouched", lambda catalog: catalog.checkpoints.untouched(KEY)),
    "groups": ("groups", "body", lambda catalog: catalog.groups.all()),
    "settings": ("settings", "body", lambda catalog: catalog.settings.get(KEY)),
    "journal": ("steps", "details", lambda catalog: interrupted(catalog, KEY)),
}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    catalog = Catalog(f"sqlite:///{tmp_path_factory.mktemp('one')}/catalog.db")
    catalog.checkpoints.add(node("a"), "<a/>", head_parent="a", untouched=Untouched({"/i/now": "1"}))
    catalog.groups.put(Group("shop"))
    catalog.settings.put(KEY, Settings())
    yield catalog
    catalog.close()


@given(
    reader=st.sampled_from(sorted(READERS)),
    value=st.just(GOOD).flatmap(almost).map(json.dumps)
    | JSON.map(json.dumps)
    | st.text(st.characters(exclude_categories=("Cs",))),
)
@examples(300)
def test_whatever_a_row_contains_is_read_or_refused(one, reader, value):
    """Broken: a damaged catalog would end in a traceback, or hang."""
    table, column, read = READERS[reader]
    damage(one, value, table=table, column=column)
    try:
        read(one)
    except QuiesceError as error:
        assert len(error.message) < 2000
