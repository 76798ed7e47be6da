"""Makes groups of VMs, and changes them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from quiesce.context import Context
from quiesce.model.errors import NotFoundError, QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.groups import Group, Member, Tier, Words, all_members, check_group_name, parse_member
from quiesce.model.names import CheckpointReference, parse_reference
from quiesce.model.tree import Checkpoint, GroupPart
from quiesce.operations.delete import Deleted, delete


@dataclass(frozen=True)
class Shown:
    """A group, its members and its checkpoints."""

    group: Group
    members: tuple[Member, ...]
    """The group's own members and those of the groups in it."""
    checkpoints: tuple[GroupPart, ...]


def create(context: Context, name: str, members: Sequence[str]) -> Group:
    """Makes a group. `members`: each as `VM`, `VM:TIER` or `@GROUP`. Raises NameTakenError, UsageError, NotFoundError."""
    group = _extended(context, Group(check_group_name(name)), members)
    context.catalog.groups.put(group, new=True)
    return group


def add(context: Context, name: str, members: Sequence[str]) -> Group:
    """Adds members. Raises NotFoundError; RefusedError for a VM or group that is a member already, and for a group that would
    contain itself."""
    group = _extended(context, context.catalog.groups.get(name), members)
    context.catalog.groups.put(group)
    return group


def remove(context: Context, name: str, members: Sequence[str]) -> Group:
    """Removes members. Raises NotFoundError for a VM or group that is not a member."""
    group = context.catalog.groups.get(name)
    for text in members:
        words = _words(text, is_vm=text in [member.vm_name for member in group.members])
        if not words.group:
            group = group.without_member(words.vm)
        elif words.group in group.groups:
            group = replace(group, groups=tuple(inner for inner in group.groups if inner != words.group))
        else:
            raise NotFoundError(f"group {name} does not contain group {words.group!r}", hint=f"quiesce group show {name}")
    context.catalog.groups.put(group)
    return group


def forget(context: Context, name: str) -> Group:
    """Removes a group. The checkpoints of its members stay, as parts of the group's checkpoints. Raises RefusedError while the
    group is in another group."""
    group = context.catalog.groups.get(name)
    outer = next((other.name for other in context.catalog.groups.all() if name in other.groups), None)
    if outer:
        raise RefusedError(
            f"group {name} is in group {outer}", hint=f"remove it there first: quiesce group remove {outer} @{name}"
        )
    context.catalog.groups.remove(name)
    return group


def show_group(context: Context, name: str) -> Shown:
    group = context.catalog.groups.get(name)
    return Shown(group, members_of(context, name), tuple(context.catalog.checkpoints.of_group(name)))


def list_groups(context: Context) -> list[Shown]:
    """Leaves out groups whose records cannot be read, and warns."""
    shown = []
    for name in context.catalog.groups.names():
        try:
            shown.append(show_group(context, name))
        except QuiesceError as error:
            context.emit(Warned(f"group {name} is not listed: {error.message}"))
    return shown


def members_of(context: Context, name: str) -> tuple[Member, ...]:
    return all_members(name, context.catalog.groups.get)


def parts_of(context: Context, reference: str) -> tuple[GroupPart, list[Checkpoint]]:
    """The group's checkpoint `GROUP@CHECKPOINT` (name or id), and those of its parts that still exist. Raises UsageError,
    NotFoundError."""
    asked = parse_reference(reference)[0]  # a group has no @ in its name
    for part in reversed(context.catalog.checkpoints.of_group(asked.vm)):
        if asked.checkpoint in (part.name, part.id):
            return part, context.catalog.checkpoints.parts(part.id)
    raise NotFoundError(f"group {asked.vm} has no checkpoint {asked.checkpoint!r}", hint=f"quiesce group show {asked.vm}")


def all_parts_of(context: Context, reference: str, done: str, *, hint: str) -> tuple[GroupPart, list[Checkpoint]]:
    """As `parts_of`. Raises RefusedError if a part is gone. For its message: `done` is what is done with all parts, and `hint`
    ends with the command that does it with one."""
    part, nodes = parts_of(context, reference)
    if gone := len(part.members) - len(nodes):
        raise RefusedError(
            f"{reference} cannot be {done} as a whole: {gone} of its {len(part.members)} parts were deleted",
            hint=f"{hint} {nodes[0].vm_name}@{nodes[0].name}",
        )
    return part, nodes


def tiers_of(context: Context, part: GroupPart) -> dict[str, Tier]:
    """The tier of each member in the group as it is now, by VM UUID. Empty if the group was removed."""
    with suppress(QuiesceError):
        return {member.vm_uuid: member.tier for member in members_of(context, part.group) if member.tier is not Tier.EXTERNAL}
    return {}


def delete_checkpoint(context: Context, reference: str, *, dry_run: bool = False) -> Deleted:
    """Deletes all parts of a group's checkpoint. Guarantees and errors as `delete`."""
    _, nodes = parts_of(context, reference)
    return delete(context, [CheckpointReference(node.vm_uuid, node.id) for node in nodes], dry_run=dry_run)


def _words(text: str, *, is_vm: bool) -> Words:
    """A VM may have a name that reads like a member with a tier, as `web:front`, or like a group, as `@web`."""
    return Words(vm=text) if is_vm else parse_member(text)


def _extended(context: Context, group: Group, members: Sequence[str]) -> Group:
    with context.host() as host:
        asked = [_words(text, is_vm=(":" in text or text.startswith("@")) and host.has(text)) for text in members]
    for words in asked:
        if words.group:
            context.catalog.groups.get(words.group)
            if words.group in group.groups:
                raise RefusedError(f"group {words.group} is in group {group.name} already")
            group = replace(group, groups=(*group.groups, words.group))
        else:
            with context.vm(words.vm) as vm:
                group = group.with_member(Member(vm.key.host, vm.uuid, vm.name, words.tier))
    all_members(group.name, lambda name: group if name == group.name else context.catalog.groups.get(name))
    return group
