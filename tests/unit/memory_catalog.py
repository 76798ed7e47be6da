"""The catalog in memory: all of it real, and told of every change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from quiesce.catalog.checkpoints import Checkpoints
from quiesce.catalog.database import Database
from quiesce.catalog.images import Images
from quiesce.catalog.store import Catalog
from quiesce.model.keys import VmKey


class MemoryDatabase(Database):
    """In memory and for this thread alone. `on_step` is called before anything is committed, `on_change` after it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.on_step: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None
        super().__init__("sqlite://")

    def lock_directory(self) -> Path:
        return self._directory

    def state_directory(self) -> Path:
        return self._directory

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        with super().transaction() as connection:
            raw: Any = connection.connection.dbapi_connection
            before = raw.total_changes
            yield connection
            changed = raw.total_changes != before
            if changed:
                self.on_step()
        if changed:
            self.on_change()


class Remembered:
    """Answers of the catalog that are asked for most often, until something changes."""

    def __init__(self, asked: Any, *names: str) -> None:
        self._asked = asked
        self._names = names
        self.answers: dict[tuple[str, VmKey], Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            return getattr(self._asked, name)

        def ask(key: VmKey) -> Any:
            if (name, key) not in self.answers:
                self.answers[name, key] = getattr(self._asked, name)(key)
            return self.answers[name, key]

        return ask


class MemoryCatalog(Catalog):
    """All of it real, in memory."""

    database: MemoryDatabase
    checkpoints: Checkpoints
    images: Images

    def __init__(self, directory: Path) -> None:
        super().__init__(database=MemoryDatabase(directory))
        remembered = Remembered(self.checkpoints, "tree"), Remembered(self.images, "made_for", "merged", "live")
        self.checkpoints, self.images = remembered  # type: ignore[assignment]
        self._user_hook: Callable[[], None] = lambda: None

        def changed() -> None:
            for each in remembered:
                each.answers.clear()
            self._user_hook()

        self.database.on_change = changed

    @property
    def on_step(self) -> Callable[[], None]:
        return self.database.on_step

    @on_step.setter
    def on_step(self, hook: Callable[[], None]) -> None:
        self.database.on_step = hook

    @property
    def on_change(self) -> Callable[[], None]:
        return self._user_hook

    @on_change.setter
    def on_change(self, hook: Callable[[], None]) -> None:
        self._user_hook = hook
