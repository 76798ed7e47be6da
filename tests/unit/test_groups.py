"""model/groups.py, and what the catalog keeps of groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quiesce.catalog.checkpoints import New
from quiesce.catalog.store import Catalog
from quiesce.model.errors import NameTakenError, NotFoundError, RefusedError, UsageError
from quiesce.model.groups import Group, Member, Tier, Words, all_members, check_group_name, parse_member
from quiesce.model.keys import VmKey
from quiesce.model.tree import GroupPart
from tests.samples import node

WEB, DB, STOCK = (Member("host1", f"uuid-{name}", name, tier) for name, tier in
                  (("web", Tier.FRONT), ("db", Tier.BACK), ("stock", Tier.BACK)))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("web:front", Words("web", Tier.FRONT)),
        ("web", Words("web")),
        ("a:b:back", Words("a:b", Tier.BACK)),
        ("replica:external", Words("replica", Tier.EXTERNAL)),
        ("@databases", Words(group="databases")),
    ],
)
def test_a_member_is_a_vm_with_a_tier_or_a_group(text, words):
    """Broken: the VMs of an application would be started in the wrong order."""
    assert parse_member(text) == words


@pytest.mark.parametrize("text", ["web:", ":front", "web:frontend"])
def test_what_names_no_member_is_refused(text):
    """Broken: a misspelt tier would become part of a VM's name."""
    with pytest.raises(UsageError):
        parse_member(text)


@pytest.mark.parametrize("name", ["", "a b", "a@b", "-x", ".x", "a/b"])
def test_a_groups_name_can_be_told_from_a_reference(name):
    """Broken: GROUP@CHECKPOINT could be read in two ways."""
    with pytest.raises(UsageError):
        check_group_name(name)
    assert check_group_name("shop-2.eu_west") == "shop-2.eu_west"


def test_a_vm_is_a_member_once():
    """Broken: one VM would be locked twice, or switched twice in one window."""
    group = Group("shop").with_member(WEB)
    with pytest.raises(RefusedError, match="member of group shop already"):
        group.with_member(replace(WEB, vm_name="renamed"))
    assert group.without_member("web").members == group.without_member("uuid-web").members == ()
    with pytest.raises(NotFoundError):
        group.without_member("db")


def test_groups_in_a_group_have_their_members_in_it_once():
    """Broken: a member of two groups would be taken twice, or a group in itself would never end."""
    known = {
        "shop": Group("shop", (WEB,), ("databases", "backs")),
        "databases": Group("databases", (DB,)),
        "backs": Group("backs", (replace(DB, tier=Tier.FRONT), STOCK)),
    }
    assert all_members("shop", known.__getitem__) == (WEB, DB, STOCK)
    known["databases"] = Group("databases", (), ("shop",))
    with pytest.raises(RefusedError, match="shop > databases > shop"):
        all_members("shop", known.__getitem__)


def test_an_external_server_is_a_member_like_others():
    """Broken: it would not be asked whether it disagrees, or be taken for none in a group within the group."""
    replica = Member("host1", "uuid-replica", "replica", Tier.EXTERNAL)
    known = {"shop": Group("shop", (WEB,), ("databases",)), "databases": Group("databases", (DB,)).with_member(replica)}
    assert all_members("shop", known.__getitem__) == (WEB, DB, replica)
    with pytest.raises(RefusedError, match="member of group databases already"):
        known["databases"].with_member(replace(replica, tier=Tier.BACK))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(f"sqlite:///{tmp_path}/catalog.db")


def test_groups_are_kept(catalog):
    """Broken: a group would be lost, or overwritten by another of its name."""
    shop = Group("shop", (WEB, DB), ("more",))
    catalog.groups.put(shop, new=True)
    assert catalog.groups.get("shop") == shop
    with pytest.raises(NameTakenError):
        catalog.groups.put(Group("shop"), new=True)
    catalog.groups.put(Group("shop", (DB,)))
    catalog.groups.put(Group("a"), new=True)
    assert catalog.groups.all() == [Group("a"), Group("shop", (DB,))]
    catalog.groups.remove("shop")
    with pytest.raises(NotFoundError):
        catalog.groups.get("shop")


def _part(name: str, vm: str) -> New:
    part = GroupPart("g1", "shop", "now", ("n-web", "n-db"), 12)
    made = node(f"n-{vm}", name=name, vm_uuid=f"uuid-{vm}", vm_name=vm, group=part)
    return New(made, "<domain/>", made.id)


def test_parts_are_recorded_together_or_not_at_all(catalog):
    """Broken: one server's checkpoint would be there without the other's."""
    taken = replace(_part("taken", "db").checkpoint, id="n-other", group=None)
    catalog.checkpoints.add(taken, "<domain/>", head_parent=None)
    with pytest.raises(NameTakenError, match="db has a checkpoint named 'taken'"):
        catalog.checkpoints.add_together([_part("now", "web"), _part("taken", "db")])
    assert catalog.checkpoints.parts("g1") == []
    assert catalog.checkpoints.tree(VmKey("host1", "uuid-web")).nodes == ()


def test_the_parts_of_a_groups_checkpoint_are_found(catalog):
    """Broken: a group could not be restored, or one of its parts be deleted without a word."""
    new = [_part("now", "db"), _part("now", "web")]
    catalog.checkpoints.add_together(new)
    assert [node.vm_name for node in catalog.checkpoints.parts("g1")] == ["web", "db"]
    assert [part.id for part in catalog.checkpoints.of_group("shop")] == ["g1"]
    assert catalog.checkpoints.of_group("other") == []
    catalog.checkpoints.update(*(replace(item.checkpoint, hidden=True) for item in new))
    assert catalog.checkpoints.parts("g1") == catalog.checkpoints.of_group("shop") == []
