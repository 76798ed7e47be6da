"""Which files of ours may be removed. That nothing is known to need a file is no reason: somebody may have given the VM another
definition, or the catalog may have lost a record. So each file that is removed has evidence of its own:

- quiesce committed the image into its backing file, which has its data since;
- a user deleted or gave up the checkpoint, or the state, that consisted of it: the journal says so;
- a chain was made shorter, or was going to be: another image has all that this one has;
- it is an overlay that nobody ever wrote to;
- it is a small file that an operation made which was undone before the VM could use it.

Everything else is kept, and `doctor` names it. Example: a VM wrote `now.qcow2`, and somebody defines it again with the disk
that it had a year ago. Nothing names `now.qcow2` then, but nothing says either that its content may go."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

from quiesce.catalog import journal
from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.manifest import Loaded
from quiesce.catalog.steps import Forget, Hide, MakeOverlay, PutBack, RemoveFile, Shorten, Switch, WriteFile
from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.places import manifests
from quiesce.disks.survey import Survey, look_around, survey
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError
from quiesce.storage import qcow2
from quiesce.storage.port import Storage


class Strays:
    """The manifests of checkpoints that the catalog does not have. Each place is searched once."""

    def __init__(self, context: Context, host: Host) -> None:
        self._context = context
        self._host = host
        self._searched: set[str] = set()
        self._by_vm: dict[str, list[tuple[str, Loaded]]] = {}

    def of(self, vm: Vm, found: Survey) -> list[tuple[str, Loaded]]:
        """Those of this VM in the places of its images, with their paths."""
        for place in sorted(set(found.places.values()) - self._searched):
            self._search(place)
            self._searched.add(place)
        return self._by_vm.get(vm.uuid, [])

    def _search(self, place: str) -> None:
        try:
            paths = manifests(self._context.storage(self._host), place)
        except QuiesceError:
            return  # the survey says so
        for id in sorted(paths.keys() - self._context.catalog.checkpoints.known(paths)):
            with suppress(QuiesceError):  # it may be anybody's
                stray = images.read_manifest(self._context, self._host, paths[id])
                self._by_vm.setdefault(stray.manifest.checkpoint.vm_uuid, []).append((paths[id], stray))

    def files(self, vm: Vm, found: Survey) -> set[str]:
        """The files of the checkpoints of `of`, with their backing files."""
        return found.chains.needed(path for _, stray in self.of(vm, found) for path in stray.manifest.checkpoint.paths())


def removable(
    context: Context, vm: Vm, found: Survey, undone: Collection[Interrupted] = (), strays: Strays | None = None
) -> dict[str, str]:
    """The orphans of the survey that may be removed, overlays before their backing files, and the evidence for each: the end of
    a sentence. `found`: after `look_around`. `undone`: operations that have just been recovered, and were not completed.
    `strays`: if the caller has searched for them."""
    orphans = found.orphans()
    if not orphans:
        return {}
    kept = (strays or Strays(context, vm.host)).files(vm, found)
    given_up = {**_given_up(context, vm, found), **_copies(context, vm, found)}
    unused = _never_used(context, vm, undone)
    evidence: dict[str, str] = {}
    for path in orphans:
        if path in kept or found.chains.readers(path) & set(orphans) - evidence.keys():
            continue
        if path in found.merged:
            evidence[path] = "its data are in its backing file, into which quiesce committed it"
        elif path in given_up:
            evidence[path] = given_up[path]
        elif path in unused or never_written(context, vm, found, path):
            evidence[path] = "nobody ever wrote to it"
    return evidence


def discard_orphans(context: Context, vm: Vm, undone: Collection[Interrupted] = ()) -> list[str]:
    """Removes every file of ours that may be removed, and the records of files that are gone. Returns the removed paths. To be
    called under the VM's lock, when no operation is unfinished but those in `undone`: otherwise a file may be one that an
    operation just made."""
    found = survey(context, vm)
    if found.orphans():
        found = look_around(context, vm, found)
    removed = removable(context, vm, found, undone)
    for path in removed:
        images.discard(context, vm, path, found, going=removed)
    for path in found.made - found.images.keys() - found.needed() - found.live:
        if not context.catalog.checkpoints.with_file(vm.host.id, path):
            context.catalog.images.forget(vm.host.id, path)
    return list(removed)


def discard_unneeded(context: Context, vm: Vm, journal: Journal, found: Survey) -> bool:
    """Removes every file of ours that may be removed, or warns if that fails. Returns whether there were any."""
    if not found.orphans():
        return False
    around = look_around(context, vm, found)
    unneeded = removable(context, vm, around)
    for path in unneeded:
        images.discard_or_warn(context, vm, journal, path, around, going=unneeded)
    return bool(unneeded)


def never_written(context: Context, vm: Vm, found: Survey, path: str) -> bool:
    """Whether the image is an overlay as it was made, by its header and length."""
    image = found.images.get(path)
    if not image or image.format != "qcow2" or not image.backing:
        return False
    try:
        return is_empty(context.storage(vm.host), path)
    except QuiesceError:
        return False


def is_empty(storage: Storage, path: str) -> bool:
    """Whether the image has no data of its own, by its header and length."""
    return qcow2.has_no_data(storage.start(path), storage.size(path))


def _given_up(context: Context, vm: Vm, found: Survey) -> Mapping[str, str]:
    """The files that the journal gives up, and how."""
    given: dict[str, str] = {}
    for step, done in journal.steps_of(context.catalog, vm.key, Forget, Hide, PutBack, RemoveFile):
        match step:
            case Forget(files=files) | Hide(files=files):
                given |= dict.fromkeys(files, "the checkpoint that had it was deleted")
            case RemoveFile(path=path):
                given.setdefault(path, "quiesce was about to remove it")
            case PutBack(before=before, safety=None) if done or set(step.sources.values()) <= set(found.head.values()):
                paths = {disk.path for disk in vm.host.disks(before) if disk.path} | {domain_xml.nvram(before) or ""}
                given |= dict.fromkeys(paths, "a restore discarded the state that had it (--discard-current)")
    return given


def _copies(context: Context, vm: Vm, found: Survey) -> Mapping[str, str]:
    """The files that shortenings left: what the VM wrote before, or copies that were never used."""
    files: dict[str, str] = {}
    for step, done in journal.steps_of(context.catalog, vm.key, Shorten):
        assert isinstance(step, Shorten)
        if done or found.owners().get(step.copy):
            files |= dict.fromkeys((step.head,) if step.head else (), f"the VM's data were copied into {step.overlay}")
        elif {step.image, *([step.head] if step.head else [])} <= found.images.keys():
            files |= dict.fromkeys((step.copy, *([step.overlay] if step.overlay else [])), "a copy that was not used")
    return files


def _never_used(context: Context, vm: Vm, undone: Collection[Interrupted]) -> set[str]:
    """The small files of operations that were undone. If an overlay of one has data, the VM ran with what the operation made:
    then its files are kept."""
    storage, found = context.storage(vm.host), set()
    for operation in undone:
        overlays = [step.path for step in operation.of(MakeOverlay) if storage.has(step.path)]
        if all(is_empty(storage, path) for path in overlays):
            found |= {step.path for step in operation.of(WriteFile)}
            found |= {step.memory for step in operation.of(Switch) if step.memory}
    return found
