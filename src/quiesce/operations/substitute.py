"""What stands in for a catalog that is damaged or cannot be written, for verbs that only show something.

A catalog that can only be read is copied: SQLite writes even to read. In the place of a damaged one, a catalog is made from the
manifests beside the images, as `quiesce catalog rebuild` would make it. Both are gone when the verb ends."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quiesce.catalog import unusable
from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.model.errors import CatalogDamagedError, CatalogReadOnlyError
from quiesce.model.events import Emit, Warned
from quiesce.operations.rebuild import rebuild


@contextmanager
def substitute(error: CatalogDamagedError | CatalogReadOnlyError, uri: str, emit: Emit) -> Iterator[Context]:
    """A context for verbs that change nothing. `error`: why the catalog cannot be used. Raises the same error if the copy is
    damaged, too."""
    file = Path(error.details["file"])
    with tempfile.TemporaryDirectory(prefix="quiesce-") as place:
        directory = Path(place)
        if isinstance(error, CatalogReadOnlyError):
            copy = unusable.copy_to(file, directory)
            emit(Warned(error.message))
        else:
            unusable.copy_key(file, directory)
            copy = directory / "catalog.db"
            emit(Warned(f"{error.message}. What is shown comes from the manifests beside the images; {error.hint}"))
        catalog = Catalog(f"sqlite:///{copy}")
        try:
            context = Context(uri, catalog, emit)
            if isinstance(error, CatalogDamagedError):
                rebuild(context)
            yield context
        finally:
            catalog.close()
