"""Names that read like something else: of VMs with an @ or a colon (context.py, operations/group.py)."""

from __future__ import annotations

import pytest

from quiesce.model.errors import NotFoundError, UsageError
from quiesce.model.grades import Consistency
from quiesce.model.groups import Tier
from quiesce.model.names import CheckpointReference
from quiesce.operations import group
from quiesce.operations.delete import delete
from tests.unit.world import uuid_of

NAMES = ("web", "web@prod", "web@prod@2", "@web", "web@", "@@")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("others", [(), NAMES], ids=["alone", "with the others"])
def test_what_checkpoint_prints_names_the_checkpoint(world, name, others):
    """Broken: `quiesce checkpoint web@prod --name a` would print a name that no verb accepts, or that of another VM."""
    for vm in {name, *others}:
        world.take(world.vm(vm, running=False), "a@b", Consistency.CRASH)
    assert world.context.reference(f"{name}@a@b") == CheckpointReference(name, "a@b")


def test_a_checkpoint_that_there_is_comes_before_a_longer_name(world):
    """Broken: a VM `web@prod` would hide the checkpoint `prod@a` of the VM `web`."""
    web, prod = world.vm("web", running=False), world.vm("web@prod", running=False)
    world.take(web, "prod@a", Consistency.CRASH)
    assert world.context.reference("web@prod@a") == CheckpointReference("web", "prod@a")
    assert world.context.reference("web@prod@gone*") == CheckpointReference("web@prod", "gone*")
    world.take(prod, "b", Consistency.CRASH)
    assert world.context.reference("web@prod@b") == CheckpointReference("web@prod", "b")


def test_what_two_vms_have_is_a_question(world):
    """Broken: the wrong one of two VMs would be powered off and restored. A brother of the report of an @ in a VM's name."""
    world.take(world.vm("web", running=False), "prod@a", Consistency.CRASH)
    world.take(world.vm("web@prod", running=False), "a", Consistency.CRASH)
    with pytest.raises(UsageError, match="may be 'a' of the VM 'web@prod', or 'prod@a' of the VM 'web'") as refusal:
        world.context.reference("web@prod@a")
    assert "UUID" in str(refusal.value.hint)
    reference = CheckpointReference(uuid_of("web"), "prod@a")
    assert world.context.reference(f"{uuid_of('web')}@prod@a") == reference


def test_what_names_no_vm_is_divided_at_the_first_at(world):
    """Broken: the error would name something that the user did not write."""
    assert world.context.reference("no@such@vm") == CheckpointReference("no", "such@vm")
    with pytest.raises(UsageError):
        world.context.reference("web")


def test_a_deletion_by_pattern_takes_the_vm_with_the_at(world):
    """Broken: the checkpoints of a VM with an @ in its name could not be deleted by pattern."""
    vm = world.vm("web@prod", running=False)
    world.take(vm, "a1", Consistency.CRASH)
    delete(world.context, [world.context.reference("web@prod@a*")])
    assert world.names(vm) == []


@pytest.mark.parametrize("name", ["web:front", "@web", "web:back", "a:b:c"])
def test_a_vm_whose_name_reads_like_a_member_with_a_tier_is_a_member(world, name):
    """Broken: the VM could be no member of a group, or another VM would be in its place."""
    world.vm("db")
    world.vm(name)
    made = group.create(world.context, "shop", [name, "db:front"])
    assert [(member.vm_name, member.tier) for member in made.members] == [(name, Tier.MIDDLE), ("db", Tier.FRONT)]
    if not name.startswith("@"):
        assert group.add(world.context, "shop", []).members[0].vm_uuid == uuid_of(name)
    assert [member.vm_name for member in group.remove(world.context, "shop", [name]).members] == ["db"]
    with pytest.raises(NotFoundError):
        group.remove(world.context, "shop", ["db:front:back"])
