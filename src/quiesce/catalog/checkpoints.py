"""The checkpoints, and the checkpoint that each VM is based on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any

import sqlalchemy as sa

from quiesce.catalog import fingerprints, images
from quiesce.catalog.database import Database, from_column, to_column
from quiesce.catalog.schema import checkpoints, files, heads
from quiesce.catalog.schema import images as images_table
from quiesce.model.errors import NameTakenError, QuiesceError
from quiesce.model.fingerprints import Fingerprint
from quiesce.model.keys import VmKey
from quiesce.model.soundness import UnsoundError, require_xml
from quiesce.model.standing import Untouched
from quiesce.model.tree import Checkpoint, DiskImage, GroupPart, Tree

AT_ONCE = 500
"""Values in one query; databases have limits."""


@dataclass(frozen=True)
class New:
    """A checkpoint that is to be recorded, and what else changes with it."""

    checkpoint: Checkpoint
    domain_xml: str
    """The VM's definition at the checkpoint."""
    head_parent: str | None
    """Id of the checkpoint that the VM is based on from now on."""
    untouched: Untouched | None = None
    """The VM's new images, if the VM is off."""
    live: tuple[str, ...] = ()
    """The images that the VM writes from now on; it no longer writes the checkpoint's own images."""
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)
    """Fingerprints that are recorded with it, by path."""


class Checkpoints:
    """Each method blocks, and is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def tree(self, key: VmKey) -> Tree:
        """Raises QuiesceError, naming the checkpoint, if the record of one cannot be read: what it needs is then unknown."""
        with self._database.transaction() as connection:
            nodes = nodes_of(connection, key)
            return Tree.of(nodes, _head(connection, key))

    def readable(self, key: VmKey) -> tuple[Tree, list[str]]:
        """The checkpoints whose records can be read, to be shown, and what is wrong with the others."""
        with self._database.transaction() as connection:
            nodes, wrong = _readable(connection.execute(_of(key)).all())
            return Tree.of(nodes, _head(connection, key)), wrong

    def has_any(self, key: VmKey) -> bool:
        """Whether the VM has checkpoints, hidden ones too."""
        with self._database.transaction() as connection:
            return connection.scalar(_of(key).with_only_columns(checkpoints.c.id).limit(1)) is not None

    def untouched(self, key: VmKey) -> Untouched | None:
        """What the last restore or merge recorded of the VM's images; None if there is no such record."""
        query = sa.select(heads.c.untouched).where(heads.c.host == key.host, heads.c.vm_uuid == key.uuid)
        with self._database.transaction() as connection:
            body = connection.scalar(query)
        return from_column(Untouched, body, f"what VM {key.uuid} is based on") if body else None

    def counts(self, host: str) -> dict[str, int]:
        """How many checkpoints each VM of the host has, by UUID."""
        with self._database.transaction() as connection:
            query = sa.select(checkpoints.c.vm_uuid, sa.func.count(checkpoints.c.name)).where(checkpoints.c.host == host)
            rows = connection.execute(query.group_by(checkpoints.c.vm_uuid)).all()
        return {uuid: count for uuid, count in rows}  # noqa: C416 - a row is no pair to dict()

    def domain_xml(self, checkpoint_id: str) -> str:
        with self._database.transaction() as connection:
            query = sa.select(checkpoints.c.domain_xml).where(checkpoints.c.id == checkpoint_id)
            text = str(connection.execute(query).scalar_one())
        try:
            require_xml(text)
        except UnsoundError as error:
            raise QuiesceError(f"the catalog's record of checkpoint {checkpoint_id} cannot be read: {error}") from error
        return text

    def add(
        self,
        checkpoint: Checkpoint,
        domain_xml: str,
        *,
        head_parent: str | None,
        untouched: Untouched | None = None,
        live: Iterable[str] = (),
        fingerprints: Mapping[str, Fingerprint] | None = None,
    ) -> None:
        """Records a checkpoint and the new head of the VM. The arguments are those of `New`. Raises NameTakenError."""
        self.add_together([New(checkpoint, domain_xml, head_parent, untouched, tuple(live), fingerprints or {})])

    def add_together(self, new: Sequence[New]) -> None:
        """Records several checkpoints in one transaction: all of them or none. Raises NameTakenError."""
        try:
            with self._database.transaction() as connection:
                for item in new:
                    _insert(connection, item)
        except sa.exc.IntegrityError:
            for item in new:
                if self.tree(item.checkpoint.key).has_name(item.checkpoint.name):
                    raise NameTakenError(
                        f"{item.checkpoint.vm_name} has a checkpoint named {item.checkpoint.name!r} already"
                    ) from None
            raise

    def has(self, checkpoint_id: str) -> bool:
        with self._database.transaction() as connection:
            return connection.scalar(sa.select(checkpoints.c.id).where(checkpoints.c.id == checkpoint_id)) is not None

    def free_name(self, wanted: str, keys: Iterable[VmKey]) -> str:
        """The name itself, or the first of `NAME-2`, `NAME-3`, ... that no checkpoint of these VMs has."""
        of_these = sa.or_(*(sa.and_(checkpoints.c.host == key.host, checkpoints.c.vm_uuid == key.uuid) for key in keys))
        query = sa.select(checkpoints.c.id).where(of_these).limit(1)
        names = chain([wanted], (f"{wanted}-{number}" for number in count(2)))
        with self._database.transaction() as connection:
            return next(name for name in names if connection.scalar(query.where(checkpoints.c.name == name)) is None)

    def update(self, *changed: Checkpoint) -> None:
        """Replaces the records of these checkpoints, of all or of none. Raises NameTakenError."""
        try:
            with self._database.transaction() as connection:
                for checkpoint in changed:
                    update(connection, checkpoint)
        except sa.exc.IntegrityError:
            names = ", ".join(repr(checkpoint.name) for checkpoint in changed)
            raise NameTakenError(
                f"cannot record {names}: the VM has another checkpoint of that name", hint="choose another name"
            ) from None

    def moved(self, key: VmKey, old: str, new: str, format: str, renewed: Mapping[str, Fingerprint]) -> list[Checkpoint]:
        """Records that the content of the image `old` was committed into `new`, its backing file, which has this format. `old`
        keeps its content while the file is there. `renewed`: the fingerprints of images that the commit changed, by path.
        Returns the checkpoints, hidden ones too, that had `old` and now have `new`."""
        with self._database.transaction() as connection:
            moved = _move(connection, key, old, new, format)
            merged = sa.update(images_table).where(images_table.c.host == key.host, images_table.c.path == old)
            connection.execute(merged.values(merged=True))
            fingerprints.put(connection, key, renewed)
        return moved

    def copied(self, old: str, new: str, earlier: New, left: Iterable[str]) -> list[Checkpoint]:
        """Records that the image `new` has the content of `old`: all checkpoints that had `old`, which are returned, now have
        `new`. The new checkpoint `earlier` has `old`. `left`: images that the VM no longer writes."""
        key = earlier.checkpoint.key
        with self._database.transaction() as connection:
            moved = _move(connection, key, old, new, "qcow2")
            _insert(connection, earlier)
            images.set_live(connection, key.host, left, False)
        return moved

    def with_file(self, host: str, path: str) -> list[str]:
        """Names of all checkpoints of the host that have this file among theirs; its id for one whose record is damaged."""
        query = sa.select(checkpoints).join(files, files.c.checkpoint == checkpoints.c.id)
        with self._database.transaction() as connection:
            rows = connection.execute(query.where(files.c.host == host, files.c.path == path).order_by(checkpoints.c.id)).all()
        named = {node.id: node.name for node in _readable(rows)[0]}
        return [named.get(row.id, row.id) for row in rows]

    def of_others(self, key: VmKey, paths: Sequence[str]) -> list[Checkpoint]:
        """The checkpoints, without hidden ones, of another VM of the host that consists of one of these images, or for which
        quiesce made one of them; of one such VM, if there are several."""
        made = sa.select(images_table.c.vm_uuid).where(images_table.c.host == key.host, images_table.c.path.in_(paths))
        have = sa.select(checkpoints.c.vm_uuid).join(files, files.c.checkpoint == checkpoints.c.id)
        have = have.where(files.c.host == key.host, files.c.path.in_(paths))
        with self._database.transaction() as connection:
            owners = {*connection.scalars(made), *connection.scalars(have)} - {key.uuid}
            for uuid in sorted(owners):
                if found := [node for node in nodes_of(connection, VmKey(key.host, uuid)) if not node.hidden]:
                    return sorted(found, key=lambda node: node.created)
        return []

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of these ids that checkpoints have."""
        wanted, found = list(ids), set[str]()
        with self._database.transaction() as connection:
            for begin in range(0, len(wanted), AT_ONCE):
                some = wanted[begin : begin + AT_ONCE]
                found.update(connection.scalars(sa.select(checkpoints.c.id).where(checkpoints.c.id.in_(some))))
        return found

    def domain_xmls(self, key: VmKey) -> dict[str, str]:
        """The VM's definition at each of its checkpoints, by the checkpoint's id, unchecked."""
        query = sa.select(checkpoints.c.id, checkpoints.c.domain_xml)
        with self._database.transaction() as connection:
            rows = connection.execute(query.where(checkpoints.c.host == key.host, checkpoints.c.vm_uuid == key.uuid)).all()
        return {id: xml for id, xml in rows}  # noqa: C416 - a row is no pair to dict()

    def remove(self, checkpoint: Checkpoint, head_parent: str | None) -> list[Checkpoint]:
        """Removes the record of a checkpoint. Its parent becomes the parent of its children, which are returned. `head_parent`:
        the checkpoint that the VM is based on then."""
        key = checkpoint.key
        with self._database.transaction() as connection:
            connection.execute(sa.delete(checkpoints).where(checkpoints.c.id == checkpoint.id))
            connection.execute(sa.delete(files).where(files.c.checkpoint == checkpoint.id))
            nodes = nodes_of(connection, key)
            children = [replace(node, parent=checkpoint.parent) for node in nodes if node.parent == checkpoint.id]
            for node in children:
                update(connection, node)
            connection.execute(
                sa.update(heads).where(heads.c.host == key.host, heads.c.vm_uuid == key.uuid).values(parent=head_parent)
            )
        return children

    def set_head(self, key: VmKey, parent: str | None, untouched: Untouched | None = None) -> None:
        with self._database.transaction() as connection:
            _set_head(connection, key, parent, untouched)

    def set_untouched(self, key: VmKey, untouched: Untouched | None) -> None:
        body = to_column(untouched) if untouched else None
        with self._database.transaction() as connection:
            same = heads.c.host == key.host, heads.c.vm_uuid == key.uuid
            connection.execute(sa.update(heads).where(*same).values(untouched=body))

    def parts(self, group_checkpoint: str) -> list[Checkpoint]:
        """The parts of a group checkpoint (by its id) that still exist, without hidden ones, in the order of the group."""
        with self._database.transaction() as connection:
            rows = connection.execute(sa.select(checkpoints).where(checkpoints.c.group_checkpoint == group_checkpoint)).all()
        found = [node for node in map(_node, rows) if not node.hidden and node.group]
        order = {id: place for node in found if node.group for place, id in enumerate(node.group.members)}
        return sorted(found, key=lambda node: order.get(node.id, len(order)))

    def of_group(self, group: str) -> list[GroupPart]:
        """The checkpoints of the group of which at least one part exists and can be read, oldest first."""
        with self._database.transaction() as connection:
            rows = connection.execute(sa.select(checkpoints).where(checkpoints.c.group_name == group)).all()
        nodes = sorted(_readable(rows)[0], key=lambda node: node.created)
        parts = [node.group for node in nodes if node.group and node.group.group == group and not node.hidden]
        return list({part.id: part for part in parts}.values())


def _at(disk: DiskImage, old: str, new: str, format: str) -> DiskImage:
    return replace(disk, path=new, format=format) if disk.path == old else disk


def nodes_of(connection: sa.Connection, key: VmKey) -> list[Checkpoint]:
    return [_node(row) for row in connection.execute(_of(key)).all()]


def update(connection: sa.Connection, checkpoint: Checkpoint) -> None:
    connection.execute(
        sa.update(checkpoints)
        .where(checkpoints.c.id == checkpoint.id)
        .values(vm_uuid=checkpoint.vm_uuid, name=_column(checkpoint), body=to_column(checkpoint))
    )
    connection.execute(sa.delete(files).where(files.c.checkpoint == checkpoint.id))
    _insert_files(connection, checkpoint)


def _move(connection: sa.Connection, key: VmKey, old: str, new: str, format: str) -> list[Checkpoint]:
    """The checkpoints that had the image `old`, and now have `new`, which has this format."""
    moved = [
        replace(node, disks=tuple(_at(disk, old, new, format) for disk in node.disks))
        for node in nodes_of(connection, key)
        if any(disk.path == old for disk in node.disks)
    ]
    for node in moved:
        update(connection, node)
    return moved


def _insert(connection: sa.Connection, new: New) -> None:
    checkpoint = new.checkpoint
    connection.execute(
        sa.insert(checkpoints).values(
            id=checkpoint.id,
            host=checkpoint.host,
            vm_uuid=checkpoint.vm_uuid,
            name=_column(checkpoint),
            group_checkpoint=checkpoint.group.id if checkpoint.group else None,
            body=to_column(checkpoint),
            domain_xml=new.domain_xml,
            group_name=checkpoint.group.group if checkpoint.group else None,
        )
    )
    _insert_files(connection, checkpoint)
    _set_head(connection, checkpoint.key, new.head_parent, new.untouched)
    images.set_live(connection, checkpoint.host, [disk.path for disk in checkpoint.disks], False)
    images.set_live(connection, checkpoint.host, new.live, True)
    fingerprints.put(connection, checkpoint.key, new.fingerprints)


def _insert_files(connection: sa.Connection, checkpoint: Checkpoint) -> None:
    rows = [{"host": checkpoint.host, "path": path, "checkpoint": checkpoint.id} for path in sorted(checkpoint.paths())]
    if rows:
        connection.execute(sa.insert(files), rows)


def _of(key: VmKey) -> sa.Select[Any]:
    query = sa.select(checkpoints).where(checkpoints.c.host == key.host, checkpoints.c.vm_uuid == key.uuid)
    return query.order_by(checkpoints.c.id)


def _head(connection: sa.Connection, key: VmKey) -> str | None:
    return connection.scalar(sa.select(heads.c.parent).where(heads.c.host == key.host, heads.c.vm_uuid == key.uuid))


def _node(row: sa.Row[Any]) -> Checkpoint:
    what = f"checkpoint {row.name or row.id!r} (id {row.id}, VM {row.vm_uuid})"
    node = from_column(Checkpoint, row.body, what)
    if (node.id, node.host, node.vm_uuid) != (row.id, row.host, row.vm_uuid):
        raise QuiesceError(f"the catalog's record of {what} is one of another checkpoint", hint="was it changed by hand?")
    return node


def _readable(rows: Iterable[sa.Row[Any]]) -> tuple[list[Checkpoint], list[str]]:
    nodes, wrong = [], []
    for row in rows:
        try:
            nodes.append(_node(row))
        except QuiesceError as error:
            wrong.append(error.message)
    return nodes, wrong


def _column(checkpoint: Checkpoint) -> str | None:
    return None if checkpoint.hidden else checkpoint.name


def _set_head(connection: sa.Connection, key: VmKey, parent: str | None, untouched: Untouched | None) -> None:
    connection.execute(sa.delete(heads).where(heads.c.host == key.host, heads.c.vm_uuid == key.uuid))
    body = to_column(untouched) if untouched else None
    connection.execute(sa.insert(heads).values(host=key.host, vm_uuid=key.uuid, parent=parent, untouched=body))
