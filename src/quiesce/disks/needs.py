"""Looks whether the host has all that a VM needs to start with a definition, before anything is powered off."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from quiesce.context import Context
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.lookups import Presence
from quiesce.hypervisor.needs import NOTHING, Need, Own, Wanted, needs
from quiesce.hypervisor.vm import Vm
from quiesce.local.client import LIMIT_S, OTHERS_LIMIT_S, files
from quiesce.model.errors import HypervisorError, RefusedError
from quiesce.model.events import Warned
from quiesce.storage.port import Storage


@dataclass(frozen=True)
class Lacking:
    missing: tuple[Need, ...]
    unready: Mapping[Need, Presence]
    """There, and not to be had: a network or a storage pool that is not active, a port that another program has."""


def lacking(context: Context, host: Host, xml: str, chains: Mapping[str, Sequence[str]], own: Own = NOTHING) -> Lacking:
    """What the VM of this definition needs and the host lacks. `chains`: the images that are to be below its disks, by target;
    others look at the files among them, and nobody but this at the block devices. `own`: what the VM itself has now."""
    found: dict[Need, Presence] = {}
    storage = context.storage(host)
    devices = [
        Need(Wanted.FILE, path, f"disk {target}")
        for target, chain in chains.items()
        for path in chain
        if path.startswith("/") and not storage.knows(path)
    ]
    for need in filter(None, map(own.besides, [*needs(xml, chains.keys()), *devices])):
        path = need.name
        if need.kind not in (Wanted.FILE, Wanted.DIRECTORY):
            found[need] = host.presence(need)
            if need.kind is not Wanted.VOLUME or found[need] is not Presence.THERE:
                continue
            path = host.volume_path(*need.name.split("/", 1)) or ""  # libvirt lists volumes that were removed without it
        if path and not _has(storage, need, path, local=host.local):
            found[need] = Presence.MISSING
    unready = {need: there for need, there in found.items() if there not in (Presence.THERE, Presence.MISSING)}
    return Lacking(tuple(need for need, there in found.items() if there is Presence.MISSING), unready)


def _has(storage: Storage, need: Need, path: str, *, local: bool) -> bool:
    """A medium whose storage does not answer counts as gone: a VM would hang in its start."""
    try:
        if local:
            limit = LIMIT_S if need.drive is None else OTHERS_LIMIT_S
            return bool(files().one("is_here", path, need.kind is Wanted.DIRECTORY, limit=limit))
        if need.kind is Wanted.DIRECTORY:
            storage.contents(path)
            return True
        return not storage.knows(path) or storage.has(path)
    except HypervisorError:
        if local and need.drive is None:
            raise
        return False


def require_needs(
    context: Context,
    vm: Vm,
    node: str,
    xml: str,
    chains: Mapping[str, Sequence[str]],
    *,
    own: Own,
    starts: bool,
) -> frozenset[str]:
    """Raises RefusedError, naming each, if the host lacks something that the definition of the checkpoint `node` needs. Of a
    medium in a drive it only warns, and returns the drive's target: the drive has to be emptied. `chains` and `own` as in
    `lacking`. `starts`: whether the VM is to be started, which needs what is not ready, too."""
    found = lacking(context, vm.host, xml, chains, own)
    media = [need for need in (*found.missing, *found.unready) if need.drive is not None]
    problems = [f"there is no {need}" for need in found.missing if need.drive is None]
    problems += vm.host.what_does_not_fit(xml) if not problems else []
    unready = [f"{need} is {there.value}" for need, there in found.unready.items() if need.drive is None]
    if starts:
        problems += unready
    problems = list(dict.fromkeys(problems))
    if problems:
        raise RefusedError(
            f"{vm.name} could not start with the definition of {node!r}: {'; '.join(problems)}",
            hint="bring back what is missing, or attach something else under that name; then try again",
            details={"missing": problems},
        )
    for text in [] if starts else unready:
        context.emit(Warned(f"{text}; {vm.name} does not start until it is"))
    for need in media:
        context.emit(
            Warned(f"{need.name} is gone, or its storage does not answer, so the {need.by} of {vm.name} will be empty")
        )
    return frozenset(str(need.drive) for need in media)


def look_for_needs_of_new(
    context: Context, host: Host, name: str, xml: str, *, targets: Collection[str], made: Collection[str], starts: bool
) -> None:
    """Warns of what the host lacks for the VM `name`, which is to be defined; raises RefusedError if it is to be started.
    `targets` of its disks, and `made`: what is going to be made for it."""
    found = lacking(context, host, xml, dict.fromkeys(targets, ()))
    problems = [f"there is no {need}" for need in found.missing if need.name not in made]
    problems += [f"{need} is {there.value}" for need, there in found.unready.items()]
    if starts and problems:
        raise RefusedError(
            f"{name} could not start: {'; '.join(problems)}",
            hint="make what is missing, and try again; or leave out --start, and change the definition (virsh edit)",
            details={"missing": problems},
        )
    for text in problems:
        context.emit(Warned(f"{text}; {name} does not start as it is defined"))
