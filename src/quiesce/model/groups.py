"""Groups: the VMs of one application, and groups of such groups. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from quiesce.model.errors import NotFoundError, RefusedError, UsageError
from quiesce.model.keys import VmKey


class Tier(str, Enum):
    """The part of a VM in its application. A restore of the group starts back ends first."""

    FRONT = "front"
    MIDDLE = "middle"
    BACK = "back"
    EXTERNAL = "external"
    """The VM is neither checkpointed nor restored with the group. quiesce only asks it for the positions of its applications,
    because they may disagree with those of the restored members."""


START_ORDER = (Tier.BACK, Tier.MIDDLE, Tier.FRONT)


@dataclass(frozen=True)
class Member:
    """A VM of a group, identified by host and UUID: a VM keeps both when it gets another name."""

    host: str
    vm_uuid: str
    vm_name: str
    """The VM's name when it was added to the group; only for messages."""
    tier: Tier

    @property
    def key(self) -> VmKey:
        return VmKey(self.host, self.vm_uuid)


@dataclass(frozen=True)
class Group:
    name: str
    members: tuple[Member, ...] = ()
    groups: tuple[str, ...] = ()
    """Names of groups in this group: their members are members of this group, too."""

    def with_member(self, member: Member) -> Group:
        """Raises RefusedError if the VM is a member already."""
        if any(other.key == member.key for other in self.members):
            raise RefusedError(f"{member.vm_name} is a member of group {self.name} already")
        return replace(self, members=(*self.members, member))

    def rehomed(self, old: VmKey, new: VmKey) -> Group:
        """The group with the member `old`, if it has that member, replaced by `new`."""
        members = (replace(each, host=new.host, vm_uuid=new.uuid) if each.key == old else each for each in self.members)
        return replace(self, members=tuple(members))

    def without_member(self, vm: str) -> Group:
        """`vm`: name or UUID. Raises NotFoundError."""
        left = tuple(member for member in self.members if vm not in (member.vm_name, member.vm_uuid))
        if len(left) == len(self.members):
            raise NotFoundError(f"group {self.name} has no member {vm!r}", hint=f"quiesce group show {self.name}")
        return replace(self, members=left)


@dataclass(frozen=True)
class Words:
    """A member as a user types it: `VM:TIER`, `VM`, or `@GROUP`."""

    vm: str = ""
    tier: Tier = Tier.MIDDLE
    group: str = ""


def parse_member(text: str) -> Words:
    """Raises UsageError."""
    if text.startswith("@") and len(text) > 1:
        return Words(group=text[1:])
    vm, separator, tier = text.rpartition(":")
    if not separator:
        return Words(vm=text)
    if not vm or tier not in [each.value for each in Tier]:
        raise UsageError(
            f"{text!r} does not name a member",
            hint="write VM:front, VM:middle, VM:back, VM:external or, for a group in it, @GROUP",
        )
    return Words(vm=vm, tier=Tier(tier))


def check_group_name(name: str) -> str:
    """Returns `name`. Raises UsageError if a group must not have this name."""
    if not name or not all(sign.isalnum() or sign in "-_." for sign in name) or name.startswith(("-", ".")):
        raise UsageError(f"a group's name consists of letters, digits, - _ and . only; {name!r} does not")
    return name


def all_members(name: str, find: Callable[[str], Group]) -> tuple[Member, ...]:
    """The members of the group and of all groups in it, each VM once: if several groups have a VM, its first entry counts.
    `find` returns the group of a name; what it raises passes through. Raises RefusedError if a group contains itself."""
    found: dict[VmKey, Member] = {}
    for member in _walk(name, find, (), set()):
        found.setdefault(member.key, member)
    return tuple(found.values())


def _walk(name: str, find: Callable[[str], Group], above: tuple[str, ...], seen: set[str]) -> Iterator[Member]:
    if name in above:
        raise RefusedError(f"group {name} would contain itself: {' > '.join((*above, name))}")
    if name in seen:
        return
    seen.add(name)
    group = find(name)
    yield from group.members
    for inner in group.groups:
        yield from _walk(inner, find, (*above, name), seen)
