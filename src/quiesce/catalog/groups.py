"""The groups of VMs."""

from __future__ import annotations

import sqlalchemy as sa

from quiesce.catalog.database import Database, from_column, to_column
from quiesce.catalog.schema import groups
from quiesce.model.errors import NameTakenError, NotFoundError
from quiesce.model.groups import Group
from quiesce.model.keys import VmKey


class Groups:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> Group:
        """Raises NotFoundError."""
        with self._database.transaction() as connection:
            body = connection.scalar(sa.select(groups.c.body).where(groups.c.name == name))
        if body is None:
            raise NotFoundError(f"no group named {name!r}", hint="`quiesce group list` lists all groups")
        return from_column(Group, body, f"group {name!r}")

    def all(self) -> list[Group]:
        with self._database.transaction() as connection:
            rows = connection.execute(sa.select(groups).order_by(groups.c.name)).all()
        return [from_column(Group, body, f"group {name!r}") for name, body in rows]

    def names(self) -> list[str]:
        """Of all groups, whether their records can be read or not."""
        with self._database.transaction() as connection:
            return list(connection.scalars(sa.select(groups.c.name).order_by(groups.c.name)))

    def put(self, group: Group, *, new: bool = False) -> None:
        """Records a group. With `new`, raises NameTakenError if there is a group of that name already; without, replaces that
        group."""
        try:
            with self._database.transaction() as connection:
                if not new:
                    connection.execute(sa.delete(groups).where(groups.c.name == group.name))
                connection.execute(sa.insert(groups).values(name=group.name, body=to_column(group)))
        except sa.exc.IntegrityError:
            raise NameTakenError(
                f"there is a group named {group.name!r} already",
                hint=f"choose another name, or add members to it: quiesce group add {group.name} VM",
            ) from None

    def remove(self, name: str) -> None:
        with self._database.transaction() as connection:
            connection.execute(sa.delete(groups).where(groups.c.name == name))


def rehome(connection: sa.Connection, old: VmKey, new: VmKey) -> None:
    """Replaces the member `old` by `new` in every group that has it."""
    for name, body in connection.execute(sa.select(groups)).all():
        group = from_column(Group, body, f"group {name!r}").rehomed(old, new)
        connection.execute(sa.update(groups).where(groups.c.name == group.name).values(body=to_column(group)))
