"""Looks for contradictions between the catalog, the images, the manifests and libvirt, and corrects them."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from quiesce.catalog import journal, manifest
from quiesce.catalog.journal import Interrupted
from quiesce.catalog.manifest import Loaded
from quiesce.context import Context
from quiesce.disks import fingerprints, images, merges
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError
from quiesce.model.tree import Checkpoint
from quiesce.operations.delete import go_on
from quiesce.recovery import journalled, recover_all
from quiesce.repair import lost


@dataclass(frozen=True)
class Diagnosis:
    """The findings about one VM."""

    vm: str
    found: tuple[str, ...]
    """A sentence for each fault."""
    mended: tuple[str, ...]
    """A sentence for each thing that was done; empty without --repair."""


@dataclass(frozen=True)
class _Finding:
    text: str
    mend: Callable[[], str] | None = None
    """Corrects the fault and returns what was done. None: only a person can correct it."""


def doctor(context: Context, vm_name: str | None, *, repair: bool) -> list[Diagnosis]:
    """Examines the checkpoints of a VM or, if `vm_name` is None, of all VMs. With `repair`, corrects what can be corrected.

    Gives up only checkpoints that can no longer be restored. Defines a VM that libvirt lost only if `vm_name` names it. Raises
    BusyError while an operation on the VM runs.
    """
    if vm_name is not None:
        return [_one(context, vm_name, repair, named=True)]
    with context.host() as host:
        here = {str(domain.UUIDString()): str(domain.name()) for domain in host.domains()}
        known = context.catalog.vms(host.id)
    return [_each(context, here.get(key.uuid, key.uuid), repair) for key in known]


def _each(context: Context, name: str, repair: bool) -> Diagnosis:
    """Examines one of many VMs: an error becomes a finding, so that the other VMs are examined, too."""
    try:
        return _one(context, name, repair, named=False)
    except QuiesceError as error:
        return Diagnosis(name, (error.message,), ())
    except Exception as error:  # noqa: BLE001 - a fault of ours at one VM must not hide the faults of the others
        return Diagnosis(name, (f"quiesce cannot examine this VM, by a fault of its own: {error!r}",), ())


def _one(context: Context, name: str, repair: bool, *, named: bool) -> Diagnosis:
    found: list[str] = []
    mended: list[str] = []
    if never := lost.never_imported(context, name):
        text = f"the import of VM {name} was interrupted"
        return Diagnosis(name, (text,), (never(),) if repair else ())
    if gone := lost.undefined(context, name):
        found.append(f"libvirt no longer has the VM {gone.name}; the catalog has {gone.checkpoints} checkpoints of it")
        if not (repair and named):
            found += [f"`quiesce doctor {gone.name} --repair` defines it again"] if repair else []
            return Diagnosis(gone.name, tuple(found), ())
        mended.append(lost.define_again(context, gone))
    with context.vm(name) as vm:
        if old := lost.redefined(context, vm):
            found.append(f"{vm.name} was defined anew, with another UUID; {old.checkpoints} checkpoints have its old UUID")
            if repair:
                mended.append(lost.take_over(context, vm, old))
        with context.locked(vm, "doctor"):
            interrupted = [
                f"the {operation.verb} begun at {operation.started} was interrupted"
                for operation in journal.interrupted(context.catalog, vm.key)
            ]
            found += interrupted
            if interrupted and not repair:
                return Diagnosis(vm.name, tuple(found), ())  # other faults may come from the interrupted operation
            mended += recover_all(context, vm) if interrupted else []
            while finding := next(_findings(context, vm, found), None):
                found.append(finding.text)
                if repair and finding.mend:
                    mended.append(finding.mend())
        return Diagnosis(vm.name, tuple(found), tuple(mended))


def _findings(context: Context, vm: Vm, known: list[str]) -> Iterator[_Finding]:
    """The findings whose texts are not in `known`. The caller asks anew after each one, because a correction may change the
    other findings."""
    found = survey(context, vm, patient=True)
    for check in (
        _directories,
        _renamed,
        _missing,
        _overwritten,
        _changed,
        _moved,
        _snapshots,
        _manifests,
        _orphans,
        _unmerged,
    ):
        for finding in check(context, vm, found):
            if finding.text not in known:
                yield finding


def _directories(_context: Context, _vm: Vm, found: Survey) -> Iterator[_Finding]:
    for directory, reason in sorted(found.unreadable.items()):
        yield _Finding(f"{directory}, which should have images, cannot be read: {reason}")


def _renamed(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    nodes = [replace(node, vm_name=vm.name) for node in found.tree.nodes if node.vm_name != vm.name]

    def mend() -> str:
        context.catalog.checkpoints.update(*nodes)
        for node in nodes:
            images.write_manifest(context, vm, node)
        return f"{len(nodes)} checkpoints were recorded under the name {vm.name}"

    if nodes:
        old = next(node.vm_name for node in found.tree.nodes if node.vm_name != vm.name)
        yield _Finding(f"{vm.name} was renamed: its checkpoints have its old name, {old}", mend)


def _missing(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    for node in found.tree.nodes:
        if missing := found.missing(node):
            text = f"checkpoint {node.name!r} can no longer be restored: {', '.join(missing)} is gone"
            yield _Finding(text, _giving_up(context, vm, node))


def _overwritten(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    """Checkpoints that have an image which the VM writes: somebody committed an overlay into that image with virsh."""
    written = set(found.head.values())
    for node in found.tree.checkpoints:
        spoilt = written & found.chains.needed(disk.path for disk in node.disks)
        if spoilt:
            text = f"checkpoint {node.name!r} can no longer be restored: {vm.name} writes to its image {min(spoilt)}"
            yield _Finding(text, _giving_up(context, vm, node))


def _changed(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    """Images of checkpoints that another program changed, without those that the VM writes: see `_overwritten`."""
    for path in sorted(found.changed.keys() - set(found.head.values())):
        changed = {path: found.changed[path]}
        names = [node.name for node in found.tree.checkpoints if path in found.chains.needed(disk.path for disk in node.disks)]

        def mend(changed: Mapping[str, str] = changed) -> str:
            with journalled(context, vm, "doctor") as operation:
                names = fingerprints.lower_for_good(context, vm, operation, found, changed)
            return f"{_listed(names)} recorded as crash-consistent"

        # Without what is different: while somebody goes on writing, each look would find another text.
        text = (
            f"another program changed the image {path} after a checkpoint was taken: {_listed(names)} crash-consistent at best"
        )
        yield _Finding(text, mend)


def recover(_context: Context, _vm: Vm, _operation: Interrupted) -> str:
    """Nothing to do: the labels are lowered or not, and recovery.py writes the manifests again."""
    return "can be called again"


def _listed(names: list[str]) -> str:
    """As the beginning of a sentence."""
    if not names:
        return "the disks as they are now are"
    return f"checkpoint{'s' if names[1:] else ''} {', '.join(map(repr, names))} {'are' if names[1:] else 'is'}"


def _giving_up(context: Context, vm: Vm, node: Checkpoint) -> Callable[[], str]:
    def mend() -> str:
        images.forget_checkpoint(context, vm, node)
        return f"checkpoint {node.name!r} was removed from the catalog"

    return mend


def _moved(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    """The VM is based on another checkpoint than the catalog records: somebody copied, pulled or replaced a disk."""
    if found.unreadable or not set(found.head.values()) <= found.images.keys():
        return
    parent = found.tree.get(found.tree.head_parent)
    standing = found.standing(found.head)
    based = [] if None in standing.values() else list(standing)
    wrong = found.contradicting(found.head) if parent else based
    if not wrong:
        return
    actual = standing[min(wrong)] if len({standing[target] for target in wrong}) == 1 else None

    def mend() -> str:
        context.catalog.checkpoints.set_head(vm.key, actual)
        return f"the catalog now records that {vm.name} is based on {name(actual)}"

    def name(id: str | None) -> str:
        node = found.tree.get(id)
        return repr(node.name) if node else "no checkpoint"

    recorded = name(found.tree.head_parent)
    yield _Finding(f"{vm.name} is based on {name(actual)}, not on {recorded}, which the catalog records", mend)


def _snapshots(_context: Context, vm: Vm, _found: Survey) -> Iterator[_Finding]:
    if snapshots := vm.facts().snapshots:
        yield _Finding(f"{vm.name} has {snapshots} snapshot(s) of libvirt's own: virsh snapshot-list {vm.name}")


def _manifests(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    for node in found.tree.nodes:

        def mend(node: Checkpoint = node) -> str:
            images.write_manifest(context, vm, node)
            return f"the manifest of {node.name!r} was written anew"

        try:
            path = images.manifest_path(context, vm, node)
            right = images.read_manifest(context, vm.host, path) == Loaded(images.manifest_of(context, vm, node), sealed=True)
        except QuiesceError:
            right = False
        if not right:
            yield _Finding(f"the manifest of {node.name!r} is missing or out of date", mend)
    for path, stray in _strays(context, vm, found):

        def remove(path: str = path) -> str:
            context.storage(vm.host).remove(path)
            return f"{path} was removed"

        node = stray.manifest.checkpoint
        if not stray.sealed:
            text = f"{path} describes checkpoint {node.name!r}, which the catalog lacks, and has no seal of this catalog"
            yield _Finding(f"{text}: `quiesce catalog rebuild --accept-unsigned` adds it")
        elif node.paths() <= found.images.keys():
            text = f"{path} describes checkpoint {node.name!r}, which the catalog lacks: `quiesce catalog rebuild` adds it"
            yield _Finding(text)
        else:
            yield _Finding(f"{path} describes a checkpoint whose images are gone", remove)


def _strays(context: Context, vm: Vm, found: Survey) -> Iterator[tuple[str, Loaded]]:
    """Manifests of checkpoints of this VM that the catalog does not have."""
    for path in sorted(found.images):
        id = manifest.checkpoint_id(posixpath.basename(path))
        if id and not context.catalog.checkpoints.has(id) and (described := _described(context, vm, path)):
            yield path, described


def _described(context: Context, vm: Vm, path: str) -> Loaded | None:
    """The manifest at `path`; None if it is of another VM or cannot be read."""
    try:
        described = images.read_manifest(context, vm.host, path)
    except QuiesceError:
        return None
    return described if described.manifest.checkpoint.vm_uuid == vm.uuid else None


def _orphans(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    if found.unreadable:
        return
    described = found.chains.needed(
        file for _, stray in _strays(context, vm, found) for file in stray.manifest.checkpoint.paths()
    )
    for path in sorted(found.live & found.images.keys() - found.needed()):
        text = f"{path} has, or may have, the last data of a disk that {vm.name} no longer has; quiesce does not remove it"
        yield _Finding(text)
    for path in found.orphans():
        if path in described:
            continue

        def mend(path: str = path) -> str:
            images.discard(context, vm, path)
            return f"{path} was removed"

        yield _Finding(f"nothing needs {path}", mend)


def _unmerged(context: Context, vm: Vm, found: Survey) -> Iterator[_Finding]:
    def mend() -> str:
        waiting = go_on(context, vm)
        return "; ".join(["deleted checkpoints were merged", *(f"{item.name}: {item.reason}" for item in waiting)])

    if not found.unreadable and merges.anything_to_do(found):
        names = ", ".join(repr(node.name) for node in found.tree.nodes if node.hidden)
        yield _Finding(f"deleted checkpoints can be merged or removed: {names}", mend)
    if not found.unreadable and not vm.active() and merges.can_move_branches(found):
        text = f"images of {vm.name} still have merged images as backing files; that can be changed now that the VM is off"
        yield _Finding(text, mend)
