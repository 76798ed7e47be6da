"""Looks for contradictions between the catalog, the images, the manifests and libvirt, at a VM that libvirt has. Changes
nothing: each function turns a survey into faults (repair/faults.py)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from quiesce.catalog import manifest
from quiesce.catalog.manifest import Loaded, checkpoint_id
from quiesce.context import Context
from quiesce.disks import images, merges
from quiesce.disks.last_written import Astray, AstrayState, astray, last_written
from quiesce.disks.shortening_plan import reason_to_shorten
from quiesce.disks.survey import Survey, look_around, survey
from quiesce.disks.unneeded import removable
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError
from quiesce.model.names import file_stem
from quiesce.repair.faults import (
    ChangedImage,
    ExpiredFile,
    Fault,
    ForeignSnapshots,
    IncompleteGroup,
    LongChain,
    LostFiles,
    OtherBase,
    Overwritten,
    Renamed,
    StrayManifest,
    UnexplainedFile,
    Unmerged,
    UnneededFile,
    UnreadableDirectory,
    WrongDefinition,
    WrongManifest,
)
from quiesce.repair.rounds import Rounds
from quiesce.storage.port import Aside

_STATES = {
    AstrayState.GONE: "there is no file {named}",
    AstrayState.UNWRITTEN: "{named} is older than {last}, and nobody wrote to it since",
    AstrayState.WRITTEN: "somebody wrote to {named} after {last} was made, so each may have data that the other lacks",
    AstrayState.RUNNING: "{vm} writes {named} now, so each has data that the other lacks, or will have",
    AstrayState.UNKNOWN: "nothing tells whether {named} has all that {last} has",
}


def survey_with_neighbours(context: Context, rounds: Rounds, vm: Vm) -> Survey:
    """The survey of the VM, with its neighbours, and with whatever cannot be read. To be called under the VM's lock."""
    found = survey(context, vm, patient=True)
    neighbours = rounds.neighbours(set(found.places.values()))
    return look_around(context, vm, found, patient=True, neighbours=neighbours)


def faults(context: Context, rounds: Rounds, vm: Vm, found: Survey) -> Iterator[Fault]:
    """Everything that is found at the VM as it is. `found`: from `survey_with_neighbours`. To be called under the VM's lock,
    when no operation is interrupted."""
    running, ahead = vm.active(), vm.heads(next_start=True)
    last = last_written(found.images, found.tree, found.live, found.made, (), found.others)
    wrong = [] if found.unreadable else astray(found, last, ahead, running=running)
    yield from _directories(vm, found)
    yield from _definition(vm, wrong)
    yield from _renamed(vm, found)
    yield from _missing(vm, found)
    yield from _overwritten(vm, found, wrong, running=running)
    yield from _changed(vm, found)
    yield from _moved(vm, found, wrong)
    yield from _snapshots(vm)
    yield from _manifests(context, rounds, vm, found)
    yield from _files(context, rounds, vm, found, wrong)
    yield from _unmerged(vm, found)
    yield from _long(vm, found)
    yield from _groups(context, vm, found)
    yield from _expired(context, vm, found)


def _directories(vm: Vm, found: Survey) -> Iterator[Fault]:
    for directory, reason in sorted(found.unreadable.items()):
        yield UnreadableDirectory(vm.name, directory, f"{directory}, which should have images, cannot be read: {reason}")


def _definition(vm: Vm, wrong: Sequence[Astray]) -> Iterator[Fault]:
    """Disks whose definitions do not name the image that the VM wrote last."""
    for item in wrong:
        when = "at its next start, " if item.next_start else ""
        known = _STATES[item.state].format(named=item.named, last=item.last, vm=vm.name)
        text = f"{when}disk {item.target} of {vm.name} is {item.named}, not {item.last}, which the VM wrote last"
        yield WrongDefinition(vm.name, item.last, text, (known,), item)


def _renamed(vm: Vm, found: Survey) -> Iterator[Fault]:
    old = sorted({node.vm_name for node in found.tree.nodes} - {vm.name})
    if old:
        text = f"{vm.name} was renamed: its checkpoints have its old name, {', '.join(old)}"
        yield Renamed(vm.name, old[0], text, (f"its UUID is still {vm.uuid}",))


def _missing(vm: Vm, found: Survey) -> Iterator[Fault]:
    for node in found.tree.nodes:
        if missing := found.missing(node):
            text = f"checkpoint {node.name!r} can no longer be restored: {', '.join(missing)} is gone"
            known = f"the director{'ies are' if missing[1:] else 'y is'} readable and has other files of {vm.name}"
            yield LostFiles(vm.name, node.name, text, (known,), not found.unreadable)


def _overwritten(vm: Vm, found: Survey, wrong: Sequence[Astray], *, running: bool) -> Iterator[Fault]:
    """Checkpoints that have an image which the VM writes: somebody committed an overlay into that image with virsh, or gave the
    VM the image as its disk."""
    if found.unreadable:
        return
    safe = {item.named for item in wrong if item.state is AstrayState.UNWRITTEN}
    written = set(found.head.values()) - safe
    for node in found.tree.checkpoints:
        if spoilt := written & found.chains.needed(disk.path for disk in node.disks):
            path = min(spoilt)
            if path in found.elsewhere and not running:
                text = (
                    f"{vm.name} has the image {path} of checkpoint {node.name!r} as its disk, so the next start overwrites it"
                )
                known = f"{path} is no file, so nothing tells whether somebody wrote to it already"
                yield Overwritten(vm.name, node.name, text, (known,), written=False)
            elif running or path in found.changed or path not in found.fingerprints:
                text = f"checkpoint {node.name!r} can no longer be restored: {vm.name} writes to its image {path}"
                yield Overwritten(vm.name, node.name, text, (found.changed.get(path, f"it is the disk of {vm.name}"),))
            else:
                text = f"the next start of {vm.name} would overwrite the image {path} of checkpoint {node.name!r}"
                yield Overwritten(vm.name, node.name, text, ("nobody wrote to it yet",), written=False)


def _changed(vm: Vm, found: Survey) -> Iterator[Fault]:
    """Images of checkpoints that another program changed, or may have, without those that the VM writes: see `_overwritten`."""
    for path in sorted(found.changed.keys() - set(found.head.values())):
        names = [node.name for node in found.tree.checkpoints if path in found.chains.needed(disk.path for disk in node.disks)]
        # The difference is not in the text: while somebody goes on writing, each look would find another one.
        settle = False
        if found.discrepancies[path].spoilt:
            what = f"another program changed the image {path} after a checkpoint was taken"
        else:
            what = f"nothing shows that the image {path} still has what was checkpointed"
            settle = bool(found.fingerprints[path].content)
            what += "" if settle else ", and no digest of its content was recorded"
        text = f"{what}: {listed(names)} crash-consistent at best"
        yield ChangedImage(vm.name, path, text, (found.changed[path],), settle)


def listed(names: list[str]) -> str:
    """As the beginning of a sentence."""
    if not names:
        return "the disks as they are now are"
    return f"checkpoint{'s' if names[1:] else ''} {', '.join(map(repr, names))} {'are' if names[1:] else 'is'}"


def _moved(vm: Vm, found: Survey, misplaced: Sequence[Astray]) -> Iterator[Fault]:
    """The VM is based on another checkpoint than the catalog records: somebody copied, pulled or replaced a disk."""
    if found.unreadable or not set(found.head.values()) <= found.images.keys():
        return
    if any(not item.next_start for item in misplaced):
        return  # whatever it is based on: its definition is wrong
    parent = found.tree.get(found.tree.head_parent)
    standing = found.standing(found.head)
    based = [] if None in standing.values() else list(standing)
    wrong = found.contradicting(found.head) if parent else based
    if wrong:
        actual = standing[min(wrong)] if len({standing[target] for target in wrong}) == 1 else None
        recorded = name_of(found, found.tree.head_parent)
        text = f"{vm.name} is based on {name_of(found, actual)}, not on {recorded}, which the catalog records"
        yield OtherBase(vm.name, vm.name, text, ("the headers of its images say so",), actual)


def name_of(found: Survey, id: str | None) -> str:
    node = found.tree.get(id)
    return repr(node.name) if node else "no checkpoint"


def _snapshots(vm: Vm) -> Iterator[Fault]:
    if snapshots := vm.facts().snapshots:
        yield ForeignSnapshots(vm.name, vm.name, f"{vm.name} has {snapshots} snapshot(s) of libvirt's own")


def _manifests(context: Context, rounds: Rounds, vm: Vm, found: Survey) -> Iterator[Fault]:
    storage, definitions = context.storage(vm.host), context.catalog.checkpoints.domain_xmls(vm.key)
    paths = images.manifest_paths(context, vm, found.tree.nodes)
    there = storage.read_each(list(paths.values()), manifest.MAX_BYTES)
    for node in found.tree.nodes:
        expected = images.described(node, definitions[node.id], found.fingerprints)
        right = False
        with suppress(QuiesceError):
            right = manifest.load(there.get(paths[node.id], b""), context.catalog.seal) == Loaded(expected, sealed=True)
        if not right:
            yield WrongManifest(vm.name, node.name, f"the manifest of {node.name!r} is missing or out of date")
    for path, stray in rounds.strays.of(vm, found):
        node = stray.manifest.checkpoint
        files = {each for each in node.paths() if storage.knows(each)}
        whole = not stray.sealed or files <= storage.look(files).images.keys()
        if stray.sealed and not whole:
            text = f"{path} describes a checkpoint whose images are gone"
        else:
            seal = "" if stray.sealed else ", and has no seal of this catalog"
            text = f"{path} describes checkpoint {node.name!r}, which the catalog lacks{seal}"
        yield StrayManifest(vm.name, path, text, (), whole, stray.sealed)


def _files(context: Context, rounds: Rounds, vm: Vm, found: Survey, wrong: Sequence[Astray]) -> Iterator[Fault]:
    """Files of ours that nothing needs, or of which nothing is known."""
    if found.unreadable:
        return
    evidence = removable(context, vm, found, strays=rounds.strays)
    for path, reason in evidence.items():
        yield UnneededFile(vm.name, path, f"nothing needs {path}", (reason,))
    kept = rounds.strays.files(vm, found)
    in_choice = {item.last for item in wrong}
    needed = found.needed()
    for path in sorted(found.live & found.images.keys() - needed - in_choice):
        text = f"{path} has, or may have, the last data of a disk that {vm.name} no longer has; quiesce does not remove it"
        used = "another VM has it as a disk" if path in found.others else None
        yield UnexplainedFile(vm.name, path, text, (f"{vm.name} wrote it last",), used)
    for path in found.orphans():
        if path not in evidence and path not in kept:
            yield UnexplainedFile(
                vm.name, path, f"no record names {path}", ("quiesce made it, and nothing says that it may go",)
            )


def _unmerged(vm: Vm, found: Survey) -> Iterator[Fault]:
    if found.unreadable:
        return
    if merges.anything_to_do(found):
        names = ", ".join(repr(node.name) for node in found.tree.nodes if node.hidden)
        yield Unmerged(vm.name, "merge", f"deleted checkpoints can be merged or removed: {names}")
    if not vm.active() and merges.can_move_branches(found):
        text = f"images of {vm.name} still have merged images as backing files; that can be changed now that the VM is off"
        yield Unmerged(vm.name, "branches", text)


def _long(vm: Vm, found: Survey) -> Iterator[Fault]:
    for target in found.head if not found.unreadable else ():
        if reason := reason_to_shorten(found, target):
            yield LongChain(vm.name, target, reason)


def _groups(context: Context, vm: Vm, found: Survey) -> Iterator[Fault]:
    """Checkpoints of groups of which a part is gone."""
    for node in found.tree.checkpoints:
        if not node.group:
            continue
        there = {part.id for part in context.catalog.checkpoints.parts(node.group.id)}
        if gone := len(set(node.group.members) - there):
            whole = f"{node.group.group}@{node.group.name}"
            text = f"{node.name!r} is a part of the group checkpoint {whole}, which cannot be restored any more"
            yield IncompleteGroup(vm.name, whole, text, (f"{gone} of its {len(node.group.members)} parts are deleted",))


def _expired(context: Context, vm: Vm, found: Survey) -> Iterator[Fault]:
    days = context.catalog.settings.get(vm.key).quarantine_days
    for aside in quarantined(context, vm, found):
        if aside.since + timedelta(days=days) < datetime.now(UTC):
            yield ExpiredFile(vm.name, aside.path, f"{aside.path} has been in the quarantine for {days} days")


def quarantined(context: Context, vm: Vm, found: Survey) -> list[Aside]:
    """The files of this VM in the quarantines beside its images: those whose names begin as its own files' do, and
    manifests."""
    storage = context.storage(vm.host)
    stems = {_stem(path) for path in found.own()} | {file_stem(vm.name)}
    listed = [aside for place in sorted(set(found.places.values())) for aside in storage.aside(place)]
    return [aside for aside in listed if _stem(aside.original) in stems or checkpoint_id(posixpath.basename(aside.original))]


def _stem(path: str) -> str:
    name = posixpath.basename(path)
    return name.rsplit(".", 3)[0] if images.named_like_ours(path) else name
