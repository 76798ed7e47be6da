"""Makes a lost catalog again, from the manifests beside the images, the images' headers and libvirt."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, replace

from quiesce.catalog import manifest
from quiesce.catalog.manifest import Manifest
from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.survey import survey
from quiesce.hypervisor.connection import Host
from quiesce.model.errors import NotFoundError, QuiesceError
from quiesce.model.events import Warned
from quiesce.model.keys import VmKey
from quiesce.model.tree import Checkpoint


@dataclass(frozen=True)
class Rebuilt:
    checkpoints: tuple[Checkpoint, ...]
    """The checkpoints that the catalog did not have."""
    manifests: int
    """Number of manifests that were read."""


def rebuild(context: Context, directories: Iterable[str] = ()) -> Rebuilt:
    """Records every checkpoint that the catalog does not have and whose manifest is in a storage pool, beside a disk of a VM,
    or in one of `directories`. Does not change checkpoints that the catalog has."""
    with context.host() as host:
        found = _manifests(context, host, {*directories, *host.pool_directories(), *_disk_directories(context, host)})
        new = [item for item in found if not context.catalog.checkpoints.has(item.checkpoint.id)]
        added = []
        for uuid in sorted({item.checkpoint.vm_uuid for item in new}):
            mine = [item for item in new if item.checkpoint.vm_uuid == uuid]
            added += _record(context, host, uuid, mine)
            _find_head(context, uuid)
    return Rebuilt(tuple(added), len(found))


def _disk_directories(context: Context, host: Host) -> set[str]:
    storage = context.storage(host)
    return {
        storage.place(disk.path)
        for xml in host.definitions()
        for disk in host.disks(xml)
        if disk.path and disk.source_type == "file"
    }


def _manifests(context: Context, host: Host, directories: set[str]) -> list[Manifest]:
    storage = context.storage(host)
    found: dict[str, Manifest] = {}
    for place in sorted(directories):
        try:
            paths = [path for path in storage.contents(place) if manifest.checkpoint_id(posixpath.basename(path))]
        except QuiesceError as error:
            context.emit(Warned(f"{place} was not searched: {error.message}"))
            continue
        for path in paths:
            try:
                item = manifest.load(storage.read(path))
                found[item.checkpoint.id] = replace(item, checkpoint=replace(item.checkpoint, host=host.id))
            except QuiesceError as error:
                context.emit(Warned(f"{path} was not read: {error.message}"))
    return list(found.values())


def _record(context: Context, host: Host, uuid: str, mine: list[Manifest]) -> list[Checkpoint]:
    catalog, key = context.catalog, VmKey(host.id, uuid)
    tree = catalog.checkpoints.tree(key)
    nodes = {node.id: node for node in (*tree.nodes, *(item.checkpoint for item in mine))}
    noted = set(catalog.images.made_for(key))
    names = {node.name for node in tree.checkpoints}
    added = []
    for item in sorted(mine, key=lambda item: item.checkpoint.created):
        node = item.checkpoint
        if node.parent not in nodes:
            node = replace(node, parent=_parent(context, host, node, tuple(nodes.values())))
        if not node.hidden and node.name in names:
            node = replace(node, name=f"{node.name[:80]} {node.id[:8]}")
        names.add(node.name)
        catalog.checkpoints.add(node, item.domain_xml, head_parent=tree.head_parent, fingerprints=item.fingerprints)
        for path in item.made:
            if path not in noted:
                catalog.images.note(key, path)
                noted.add(path)
        added.append(node)
    return added


def _parent(context: Context, host: Host, node: Checkpoint, others: tuple[Checkpoint, ...]) -> str | None:
    """The checkpoint that this one is based on, by the images' headers."""
    owned = {disk.path: other.id for other in others if other.id != node.id for disk in other.disks}
    chains = context.storage(host).look(node.paths()).chains
    bases = [base for disk in node.disks if (base := chains.base(disk.path, owned))]
    return owned[bases[0]] if bases else None


def _find_head(context: Context, uuid: str) -> None:
    """Records the checkpoint that the VM is based on, and which images beside its checkpoints quiesce made."""
    try:
        with context.vm(uuid) as vm, context.locked(vm, "catalog rebuild"):
            found = survey(context, vm)
            owners = found.owners()
            owned = {path for node in found.tree.nodes for path in node.paths()}
            for path in sorted(found.images.keys() - found.made - owned):
                ours = images.named_like_ours(path) and found.chains.base(path, owners)
                if ours and path not in found.others and not context.catalog.images.has(vm.key.host, path):
                    context.catalog.images.note(vm.key, path)
                    # It may have the last data of a detached disk of the VM: nothing tells that any more, so it is kept.
                    context.catalog.images.set_live(vm.key.host, [path], True)
            context.catalog.images.set_live(vm.key.host, found.head.values(), True)
            standing = set(found.standing(found.head).values()) - {None}
            context.catalog.checkpoints.set_head(vm.key, standing.pop() if len(standing) == 1 else None)
    except QuiesceError as error:
        if not isinstance(error, NotFoundError):
            context.emit(Warned(f"it is unknown on which checkpoint VM {uuid} is based: {error.message}; see `quiesce doctor`"))
            return
        context.emit(Warned(f"libvirt has no VM {uuid}; `quiesce doctor {uuid} --repair` defines it again"))
