"""Makes a lost catalog again, from the manifests beside the images, the images' headers and libvirt.

A manifest with the seal of this catalog is believed. Another one is read only if the caller accepts it, and then it gives only
names, times and labels: the definition is the one that libvirt has, and images are taken only from where the VM's own are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from quiesce.catalog.manifest import Manifest
from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.places import manifests
from quiesce.disks.survey import look_around, survey
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import Host
from quiesce.model.errors import NotFoundError, QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.keys import VmKey
from quiesce.model.tree import Checkpoint, Role
from quiesce.storage.port import Storage

Defined = Mapping[str, str]
"""The persistent definition of each VM that libvirt has, by UUID."""


@dataclass(frozen=True)
class Rebuilt:
    checkpoints: tuple[Checkpoint, ...]
    """The checkpoints that the catalog did not have."""
    manifests: int
    """Number of manifests that were read."""


def rebuild(context: Context, directories: Iterable[str] = (), *, accept_unsigned: bool = False) -> Rebuilt:
    """Records every checkpoint that the catalog does not have and whose manifest is in a storage pool, beside a disk of a VM,
    or in one of `directories`. Does not change checkpoints that the catalog has, defines no VM, and removes nothing. Warns of
    each manifest that it does not read.

    `accept_unsigned`: also reads manifests without the seal of this catalog, of VMs that libvirt has."""
    with context.host() as host:
        defined = {domain_xml.identity(xml).uuid: xml for xml in host.definitions()}
        places = {uuid: _places(context.storage(host), host, xml) for uuid, xml in defined.items()}
        found = _manifests(context, host, {*directories, *host.pool_directories(), *set().union(*places.values())})
        read = _believed(context, host, found, defined, places, accept_unsigned=accept_unsigned)
        new = [item for item in read if not context.catalog.checkpoints.has(item.checkpoint.id)]
        claimed = _claimed_twice(read)
        added = []
        for uuid in sorted({item.checkpoint.vm_uuid for item in new}):
            mine = [item for item in new if item.checkpoint.vm_uuid == uuid]
            try:
                added += _record(context, host, uuid, mine, places.get(uuid), claimed)
            except QuiesceError as error:
                context.emit(Warned(f"the checkpoints of VM {uuid} were not recorded: {error.message}"))
            else:
                _find_head(context, uuid)
    return Rebuilt(tuple(added), len(read))


def _places(storage: Storage, host: Host, xml: str) -> set[str]:
    """The places of the VM's disks."""
    return {storage.place(disk.path) for disk in host.disks(xml) if disk.path and disk.source_type == "file"}


def _manifests(context: Context, host: Host, directories: set[str]) -> dict[str, tuple[Manifest, bool]]:
    """By path: each manifest that can be one, and whether it is sealed."""
    storage = context.storage(host)
    found = {}
    for place in sorted(directories):
        try:
            paths = manifests(storage, place).values()
        except QuiesceError as error:
            context.emit(Warned(f"{place} was not searched: {error.message}"))
            continue
        for path in sorted(paths):
            try:
                loaded = images.read_manifest(context, host, path)
            except QuiesceError as error:
                context.emit(Warned(f"{path} was not read: {error.message}"))
                continue
            node = replace(loaded.manifest.checkpoint, host=host.id)
            found[path] = replace(loaded.manifest, checkpoint=node), loaded.sealed
    return found


def _believed(
    context: Context,
    host: Host,
    found: Mapping[str, tuple[Manifest, bool]],
    defined: Defined,
    places: Mapping[str, set[str]],
    *,
    accept_unsigned: bool,
) -> list[Manifest]:
    """One manifest for each checkpoint; one with a seal rather than one without."""
    storage = context.storage(host)
    read: dict[str, Manifest] = {}
    for path, (item, sealed) in sorted(found.items(), key=lambda entry: not entry[1][1]):
        if item.checkpoint.id in read:
            continue
        try:
            if not (sealed or accept_unsigned):
                raise RefusedError("it has no seal of this catalog; --accept-unsigned reads it")
            allowed = places.get(item.checkpoint.vm_uuid, set()) | {storage.place(path)}
            if not sealed:
                item = replace(item, checkpoint=replace(item.checkpoint, place=storage.place(path)))
                item = _without_its_word(storage, host, item, defined, allowed)
            read[item.checkpoint.id] = item
        except QuiesceError as error:
            context.emit(Warned(f"{path} was not read: {error.message}"))
    return list(read.values())


def _without_its_word(storage: Storage, host: Host, item: Manifest, defined: Defined, allowed: set[str]) -> Manifest:
    """What is taken of a manifest without a seal. The definition is the one that libvirt has. The memory is left out: libvirt
    would resume the VM with the definition that is in its file. Raises RefusedError."""
    node = item.checkpoint
    node = replace(node, files=tuple(file for file in node.files if file.role is not Role.MEMORY))
    if node.vm_uuid not in defined:
        raise RefusedError(
            f"it has no seal of this catalog, and libvirt has no VM {node.vm_uuid}. Look at the definition in it (domain_xml),"
            " define the VM with virsh, and try again"
        )
    xml = defined[node.vm_uuid]
    read = storage.look(path for disk in host.disks(xml) if (path := disk.path)).chains
    devices = read.needed(path for disk in host.disks(xml) if (path := disk.path))
    outside = sorted(path for path in node.paths() if not _is_near(storage, path, allowed, devices))
    if outside:
        raise RefusedError(f"it has no seal of this catalog, and {outside[0]} is neither beside it nor beside a disk of the VM")
    targets = {disk.target for disk in domain_xml.disks(xml)}
    if missing := sorted({disk.target for disk in node.disks} - targets):
        raise RefusedError(f"it has no seal of this catalog, and the VM that libvirt has lacks the disk {missing[0]}")
    sources = {
        disk.target: domain_xml.Source(disk.path, disk.format, device=not storage.knows(disk.path)) for disk in node.disks
    }
    return replace(item, checkpoint=node, domain_xml=domain_xml.with_sources(xml, sources))


def _is_near(storage: Storage, path: str, allowed: set[str], chains: set[str]) -> bool:
    """Whether a manifest that anybody may have written can name this image: it is in one of the `allowed` places. A block
    device has none, and may be another VM's: it must be in `chains`, those of the VM."""
    return storage.place(path) in allowed if storage.knows(path) else path in chains


def _claimed_twice(read: list[Manifest]) -> set[str]:
    """Files that checkpoints of two VMs have: quiesce does not take them for its own."""
    owners = defaultdict(set)
    for item in read:
        for path in item.checkpoint.paths():
            owners[path].add(item.checkpoint.vm_uuid)
    return {path for path, uuids in owners.items() if len(uuids) > 1}


def _record(
    context: Context, host: Host, uuid: str, mine: list[Manifest], places: set[str] | None, claimed: set[str]
) -> list[Checkpoint]:
    """`places`: those of the VM's disks; None: libvirt does not have the VM."""
    catalog, key, storage = context.catalog, VmKey(host.id, uuid), context.storage(host)
    tree = catalog.checkpoints.tree(key)
    nodes = {node.id: node for node in (*tree.nodes, *(item.checkpoint for item in mine))}
    names = {node.name for node in tree.checkpoints}
    added = []
    for item in sorted(mine, key=lambda item: item.checkpoint.created):
        node = item.checkpoint
        if node.parent not in nodes:
            node = replace(node, parent=_parent(context, host, node, tuple(nodes.values())))
        if not node.hidden and node.name in names:
            node = replace(node, name=f"{node.name[:60]} {node.id}")
        names.add(node.name)
        catalog.checkpoints.add(node, item.domain_xml, head_parent=tree.head_parent, fingerprints=item.fingerprints)
        own = {storage.place(disk.path) for disk in node.disks} if places is None else places
        for path in sorted(images.made_by_us(storage, node, own) - claimed):
            if not catalog.images.has(host.id, path):
                catalog.images.note(key, path)
        added.append(node)
    return added


def _parent(context: Context, host: Host, node: Checkpoint, others: tuple[Checkpoint, ...]) -> str | None:
    """The checkpoint that this one is based on, by the images' headers."""
    owned = {disk.path: other.id for other in others if other.id != node.id for disk in other.disks}
    raw = {disk.path for each in (node, *others) for disk in each.disks if disk.format == "raw"}
    chains = context.storage(host).look(node.paths(), raw).chains
    bases = [base for disk in node.disks if (base := chains.base(disk.path, owned))]
    return owned[bases[0]] if bases else None


def _find_head(context: Context, uuid: str) -> None:
    """Records the checkpoint that the VM is based on, and which images beside its checkpoints quiesce made."""
    try:
        with context.vm(uuid) as vm, context.locked(vm, "catalog rebuild"):
            found = look_around(context, vm, survey(context, vm))
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
