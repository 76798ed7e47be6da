"""Looks for what does not fit together around a VM's checkpoints, and mends it."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from quiesce.catalog import journal, manifest
from quiesce.context import Context
from quiesce.disks import images, merges
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError
from quiesce.model.tree import Checkpoint
from quiesce.operations.delete import go_on
from quiesce.recovery import recover_all
from quiesce.repair import lost


@dataclass(frozen=True)
class Diagnosis:
    vm: str
    found: tuple[str, ...]
    mended: tuple[str, ...]
    """What was done about it; empty unless it was to be mended."""


@dataclass(frozen=True)
class _Finding:
    text: str
    mend: Callable[[], str] | None = None
    """Returns what was done; None where only a person can mend it."""


def doctor(context: Context, vm_name: str | None, *, repair: bool) -> list[Diagnosis]:
    """What is wrong with the checkpoints of a VM, or of all; with `repair`, mended as far as it can be.

    Only what can no longer be restored is ever given up. Raises BusyError while an operation is under way.
    """
    if vm_name is not None:
        return [_one(context, vm_name, repair)]
    with context.host() as host:
        here = {str(domain.UUIDString()): str(domain.name()) for domain in host.domains()}
        known = context.catalog.vms(host.id)
    return [_each(context, here.get(key.uuid, key.uuid), repair) for key in known]


def _each(context: Context, name: str, repair: bool) -> Diagnosis:
    """One of many: what keeps it from being looked at keeps no other."""
    try:
        return _one(context, name, repair)
    except QuiesceError as error:
        return Diagnosis(name, (error.message,), ())


def _one(context: Context, name: str, repair: bool) -> Diagnosis:
    found: list[str] = []
    mended: list[str] = []
    if never := lost.never_imported(context, name):
        text = f"the import of VM {name} was interrupted"
        return Diagnosis(name, (text,), (never(),) if repair else ())
    if gone := lost.undefined(context, name):
        found.append(f"{gone.name} is no longer defined; {gone.checkpoints} checkpoints of it are left")
        if not repair:
            return Diagnosis(gone.name, tuple(found), ())
        mended.append(lost.define_again(context, gone))
    with context.vm(name) as vm:
        if old := lost.redefined(context, vm):
            found.append(f"{vm.name} was defined anew; {old.checkpoints} checkpoints belong to it as it was before")
            if repair:
                mended.append(lost.take_over(context, vm, old))
        with context.locked(vm, "doctor"):
            interrupted = [
                f"the {operation.verb} begun at {operation.started} was interrupted"
                for operation in journal.interrupted(context.catalog, vm.key)
            ]
            found += interrupted
            if interrupted and not repair:
                return Diagnosis(vm.name, tuple(found), ())  # all else may be its doing
            mended += recover_all(context, vm) if interrupted else []
            while finding := next(_findings(context, vm, found), None):
                found.append(finding.text)
                if repair and finding.mend:
                    mended.append(finding.mend())
        return Diagnosis(vm.name, tuple(found), tuple(mended))


def _findings(context: Context, vm: Vm, known: list[str]) -> Iterator[_Finding]:
    """What is not among the known. Each is looked for anew, as mending one thing changes others."""
    found = survey(context, vm, patient=True)
    for check in (_directories, _renamed, _missing, _overwritten, _moved, _snapshots, _manifests, _orphans, _unmerged):
        for finding in check(context, vm, found):
            if finding.text not in known:
                yield finding


def _directories(_context: Context, _vm: Vm, found: Survey) -> Iterator[_Finding]:
    for directory, reason in sorted(found.unreadable.items()):
        yield _Finding(f"{directory}, where images should be, cannot be read: {reason}")


def _renamed(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    nodes = [replace(node, vm_name=vm.name) for node in found.tree.nodes if node.vm_name != vm.name]

    def mend() -> str:
        context.catalog.checkpoints.update(*nodes)
        for node in nodes:
            images.write_manifest(context, vm, node)
        return f"{len(nodes)} checkpoints now say that their VM is {vm.name}"

    if nodes:
        old = next(node.vm_name for node in found.tree.nodes if node.vm_name != vm.name)
        yield _Finding(f"{vm.name} was named {old} before", mend)


def _missing(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    for node in found.tree.nodes:
        if missing := found.missing(node):
            text = f"checkpoint {node.name!r} can no longer be restored: {', '.join(missing)} is gone"
            yield _Finding(text, _giving_up(context, vm, node))


def _overwritten(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    """The VM writes an image of a checkpoint: somebody merged with virsh what lay on it."""
    written = set(found.head.values())
    for node in found.tree.checkpoints:
        spoilt = written & found.chains.needed(disk.path for disk in node.disks)
        if spoilt:
            text = f"checkpoint {node.name!r} can no longer be restored: {vm.name} writes {min(spoilt)}, which it consists of"
            yield _Finding(text, _giving_up(context, vm, node))


def _giving_up(context: Context, vm: Vm, node: Checkpoint) -> Callable[[], str]:
    def mend() -> str:
        images.forget_checkpoint(context, vm, node)
        return f"checkpoint {node.name!r} was given up"

    return mend


def _moved(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    """The VM stands elsewhere than the catalog says: somebody copied, pulled or replaced a disk."""
    if found.unreadable or not set(found.head.values()) <= found.images.keys():
        return
    parent = found.tree.get(found.tree.head_parent)
    standing = found.standing(found.head)
    parts = {target: node for target, node in standing.items() if parent is None or parent.image(target)}
    if not parts or (found.tree.head_parent in parts.values() and (parent is None or None not in parts.values())):
        return
    actual = parts.popitem()[1] if len(set(parts.values())) == 1 else None

    def mend() -> str:
        context.catalog.checkpoints.set_head(vm.key, actual)
        return f"the catalog has {vm.name} based on {name(actual)} now"

    def name(id: str | None) -> str:
        node = found.tree.get(id)
        return repr(node.name) if node else "no checkpoint"

    yield _Finding(f"{vm.name} is based on {name(actual)}, not on {name(found.tree.head_parent)}", mend)


def _snapshots(_context: Context, vm: Vm, _found: Survey) -> Iterator[_Finding]:
    if snapshots := vm.facts().snapshots:
        yield _Finding(f"{vm.name} has {snapshots} snapshot(s) of libvirt's own; see virsh snapshot-list {vm.name}")


def _manifests(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    for node in found.tree.nodes:

        def mend(node: Checkpoint = node) -> str:
            images.write_manifest(context, vm, node)
            return f"the manifest of {node.name!r} was written anew"

        try:
            right = images.manifest_of(context, vm, node) == images.read_manifest(context, vm, node)
        except QuiesceError:
            right = False
        if not right:
            yield _Finding(f"the manifest of {node.name!r} is missing or out of date", mend)
    for path, stray in _strays(context, vm, found):

        def remove(path: str = path) -> str:
            context.storage(vm.host).remove(path)
            return f"{path} was removed"

        if stray.paths() <= found.images.keys():
            text = f"{path} describes checkpoint {stray.name!r}, which the catalog does not have: `quiesce catalog rebuild`"
            yield _Finding(text)
        else:
            yield _Finding(f"{path} describes a checkpoint that is gone", remove)


def _strays(context: Context, vm: Vm, found: Survey) -> Iterator[tuple[str, Checkpoint]]:
    """Manifests of checkpoints of this VM that the catalog does not have."""
    for path in sorted(found.images):
        id = manifest.checkpoint_id(posixpath.basename(path))
        if id and not context.catalog.checkpoints.has(id) and (described := _described(context, vm, path)):
            yield path, described


def _described(context: Context, vm: Vm, path: str) -> Checkpoint | None:
    """The checkpoint of this VM that a manifest describes."""
    try:
        described = manifest.load(context.storage(vm.host).read(path)).checkpoint
    except QuiesceError:
        return None
    return described if described.vm_uuid == vm.uuid else None


def _orphans(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    if found.unreadable:
        return
    described = found.chains.needed(file for _, stray in _strays(context, vm, found) for file in stray.paths())
    for path in sorted(found.live & found.images.keys() - found.needed()):
        yield _Finding(f"{path} is, or may be, what a disk wrote that {vm.name} no longer has; it is left alone")
    for path in found.orphans():
        if path in described:
            continue

        def mend(path: str = path) -> str:
            images.discard(context, vm, path)
            return f"{path} was removed"

        yield _Finding(f"{path} is needed by nothing", mend)


def _unmerged(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    def mend() -> str:
        waiting = go_on(context, vm)
        return "; ".join(["deleted checkpoints were merged", *(f"{item.name}: {item.reason}" for item in waiting)])

    if not found.unreadable and merges.anything_to_do(found):
        names = ", ".join(repr(node.name) for node in found.tree.nodes if node.hidden)
        yield _Finding(f"deleted checkpoints can be merged or removed: {names}", mend)
    if not found.unreadable and not vm.active() and merges.can_move_branches(found):
        yield _Finding(f"what stayed on merged images while {vm.name} ran can be moved now that it is off", mend)
