"""A file that should be the catalog, but is damaged or cannot be written: how that is told, and what can be made of it.

The catalog's own directory is never changed here, except that a damaged file is renamed when a new catalog is to be made."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from quiesce.model.errors import CatalogDamagedError, CatalogReadOnlyError, QuiesceError

KEY = "seal.key"
_DAMAGED = ("file is not a database", "malformed", "unsupported file format", "file is encrypted")
"""What SQLite says of such a file."""


def files_of(file: Path) -> list[Path]:
    """The database and the files that SQLite keeps beside it, as far as they exist."""
    return [path for suffix in ("", "-wal", "-shm", "-journal") if (path := file.with_name(file.name + suffix)).exists()]


def require_usable(file: Path) -> None:
    """Raises CatalogDamagedError or CatalogReadOnlyError before SQLite sees the file. A file that does not exist is a new
    catalog; an empty one, too, unless the key of an earlier catalog lies beside it."""
    if not file.exists():
        return
    if _was_catalog(file) and not file.stat().st_size:
        raise damaged_catalog(file, "it is empty")
    unreadable = [path for path in (file.parent, *files_of(file)) if not os.access(path, os.R_OK)]
    if unreadable:
        raise QuiesceError(
            f"you may not read {unreadable[0]}, which is a part of the catalog",
            hint="use the user that the catalog belongs to, or root; or name another one: --catalog, $QUIESCE_CATALOG",
        )
    fixed = [path for path in (file.parent, *files_of(file)) if not os.access(path, os.W_OK)]
    if fixed:
        raise CatalogReadOnlyError(
            f"the catalog {file} can be read but not changed: {fixed[0]} cannot be written",
            hint="verbs that only show something work. Make it writable; or copy the directory and name the copy: --catalog,"
            " $QUIESCE_CATALOG",
            details={"file": str(file)},
        )


def is_damaged(error: BaseException, file: Path) -> bool:
    """Whether SQLite says with this error that the file, which was a catalog, is damaged. A file without the key beside it was
    none: somebody gave a wrong --catalog."""
    return _was_catalog(file) and any(text in str(error) for text in _DAMAGED)


def _was_catalog(file: Path) -> bool:
    return file.name != KEY and file.is_file() and not file.is_symlink() and (file.parent / KEY).exists()


def damaged_catalog(file: Path, reason: str) -> CatalogDamagedError:
    others = [path for path in files_of(file) if path != file]
    also = f", with {', '.join(path.name for path in others)}" if others else ""
    return CatalogDamagedError(
        f"the catalog {file} is damaged: {reason}",
        hint=f"restore it from a backup; or `quiesce catalog rebuild` moves {file}{also} away, keeps {KEY}, and makes a new"
        " catalog from the manifests beside the images",
        details={"file": str(file)},
    )


def examine(file: Path) -> None:
    """Reads all of the database. Raises CatalogDamagedError."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if is_damaged(error, file):
            raise damaged_catalog(file, str(error)) from error
        return
    if found and found[0] != "ok" and _was_catalog(file):
        raise damaged_catalog(file, str(found[0]).replace("\n", " "))


def move_away(file: Path) -> Path:
    """Renames a damaged database and what belongs to it. Returns its new name."""
    suffix = f".damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for path in reversed(files_of(file)):  # the database last: without it, a log would be taken for another's
        path.rename(path.with_name(path.name + suffix))
    return file.with_name(file.name + suffix)


def copy_to(file: Path, directory: Path) -> Path:
    """Copies the database, its log and the key. Returns the copy of the database."""
    for path in files_of(file):
        if not path.name.endswith("-shm"):
            shutil.copyfile(path, directory / path.name)
    copy_key(file, directory)
    return directory / file.name


def copy_key(file: Path, directory: Path) -> None:
    """Without the key, no manifest is believed; that is no reason to show nothing."""
    key = directory / KEY
    with contextlib.suppress(OSError):
        key.touch(mode=0o600)
        key.write_bytes((file.parent / KEY).read_bytes())
        return
    key.unlink(missing_ok=True)
