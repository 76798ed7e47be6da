"""catalog/database.py: which file is the catalog, which are refused, and who writes at once. The files are SQLite's own."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
import traceback
from urllib.parse import quote, quote_plus

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from quiesce.catalog import database
from quiesce.catalog.database import REVISION, default_url
from quiesce.catalog.journal import Journal
from quiesce.catalog.secret_url import SecretUrl
from quiesce.catalog.store import Catalog
from quiesce.model.errors import QuiesceError
from quiesce.model.groups import Group
from quiesce.model.settings import Settings
from quiesce.model.standing import Untouched
from quiesce.results import to_json
from tests.samples import KEY, ids, node

pytestmark = pytest.mark.usefixtures("own_run")


def test_locks_lie_beside_the_file(catalog, tmp_path):
    """Broken: two catalogs' operations would block each other, or two of one not."""
    assert catalog.lock_directory() == tmp_path / "state" / "locks"


def test_the_directory_is_made_and_nobody_elses_business(url, tmp_path):
    """Broken: the first run would fail, or other users could read where the images are."""
    Catalog(url).close()
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_what_was_committed_survives_a_power_failure(catalog):
    """Broken: a checkpoint could be in use on disk and unknown to the catalog."""
    with catalog.database.transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() >= 5000


def test_a_catalog_of_another_version_is_refused(url, catalog):
    """Broken: an old quiesce would write into a new one's catalog what that does not understand."""
    with catalog.database.transaction() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(QuiesceError, match=r"newer quiesce.*'9999'") as refusal:
        Catalog(url)
    assert refusal.value.hint == "upgrade this quiesce"


@pytest.mark.parametrize("step", ["create", "insert"])
def test_a_first_start_that_is_interrupted_leaves_nothing_in_the_way(step, url, monkeypatch):
    """Broken: after a power failure in the first command every other one would be refused."""

    class KilledError(BaseException):
        pass

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(*((database._version, "create") if step == "create" else (database.sa, "insert")), die)
        with pytest.raises(KilledError):
            Catalog(url)
    Catalog(url).close()


@pytest.mark.parametrize("table", ["schema_version", "photos"])
def test_a_database_that_is_not_ours_is_refused_and_left_alone(table, tmp_path):
    """Broken: tables would be made in somebody else's database, or a catalog from before there were migrations be misread."""
    path = tmp_path / "theirs.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE {table} (version INTEGER)")
    with pytest.raises(QuiesceError, match="not a catalog of this quiesce") as refusal:
        Catalog(f"sqlite:///{path}")
    assert "catalog rebuild" in refusal.value.hint
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [(table,)]


def damage(catalog: Catalog, table: str, column: str, value: str) -> None:
    with catalog.database.transaction() as connection:
        connection.execute(sa.text(f"UPDATE {table} SET {column} = :value"), {"value": value})  # noqa: S608 - not a user's


@pytest.mark.parametrize("body", ['{"tomorrow": 1}', "{", "[1]", "null", "[" * 100_000], ids=lambda body: body[:15])
@pytest.mark.parametrize(
    ("table", "column", "read"),
    [
        ("checkpoints", "body", lambda catalog: catalog.checkpoints.tree(KEY)),
        ("heads", "untouched", lambda catalog: catalog.checkpoints.untouched(KEY)),
        ("groups", "body", lambda catalog: catalog.groups.get("shop")),
        ("groups", "body", lambda catalog: catalog.groups.all()),
        ("settings", "body", lambda catalog: catalog.settings.get(KEY)),
    ],
    ids=["tree", "untouched", "group", "groups", "settings"],
)
def test_what_a_newer_quiesce_wrote_is_refused_with_what_to_do(table, column, read, body, catalog):
    """Broken: what this quiesce does not know would be left out, and lost when it is written again; or a traceback be shown."""
    catalog.checkpoints.add(node("a"), "<a/>", head_parent="a", untouched=Untouched({"/i/now": "1"}))
    catalog.groups.put(Group("shop"))
    catalog.settings.put(KEY, Settings())
    read(catalog)
    damage(catalog, table, column, body)
    with pytest.raises(QuiesceError, match="this quiesce cannot read") as refusal:
        read(catalog)
    assert "newer quiesce" in refusal.value.hint


@pytest.mark.parametrize("content", [b"this is no database, but it is long enough to be looked at" * 20, None])
def test_what_is_no_catalog_is_refused(content, tmp_path):
    """Broken: a wrong --catalog would end in a traceback."""
    path = tmp_path / "thing"
    path.write_bytes(content) if content else path.mkdir()
    with pytest.raises(QuiesceError, match="cannot open the catalog"):
        Catalog(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("postgresql://db/quiesce", "postgresql://db/quiesce"),
        ("/srv/c.db", "sqlite:////srv/c.db"),
        ("sqlite:///x", "sqlite:///x"),
    ],
)
def test_the_environment_names_the_catalog(value, expected, monkeypatch):
    """Broken: operations would be recorded where nobody looks."""
    monkeypatch.setenv("QUIESCE_CATALOG", value)
    assert default_url() == expected


PASSWORD = "pA55/w:o@rd"  # noqa: S105 - made up
QUOTED = "pA55%2Fw%3Ao%40rd"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+nosuchdriver://me:{QUOTED}@db/quiesce",
        f"nosuch://me:{QUOTED}@db/quiesce",
        f"postgresql://me:{QUOTED}@db/quiesce",
        f"mysql+pymysql://me:{QUOTED}@127.0.0.1:1/quiesce",
        f"postgresql+pg8000://me:{QUOTED}@127.0.0.1:1/quiesce",
        f"postgresql://me:{PASSWORD}@db/quiesce",
        f"postgresql://me@db/quiesce?password={QUOTED}&sslpassword={QUOTED}",
        f"postgresql://me:{QUOTED}@db:port/quiesce",
        f"x://postgres//me:{QUOTED}@db",
        f"sqlite:////dev/null/postgres//me:{PASSWORD}@db",
    ],
)
def test_no_error_shows_the_password_of_the_catalog(url):
    """Broken: a log, a ticket or a screen would have the password of the database."""
    with pytest.raises(QuiesceError) as refusal:
        Catalog(url)
    error = refusal.value
    told = "".join(traceback.format_exception(error)) + str(error.hint) + json.dumps(to_json(error)) + repr(error)
    told = told.replace("# ", "")
    for secret in (PASSWORD, QUOTED, "pA55", "w:o@rd", "w%3Ao"):
        assert secret not in told, told


def test_an_error_of_an_open_catalog_shows_no_password(catalog, monkeypatch):
    """Broken: as above, at the first failure of the server instead of the first connection."""
    catalog.database._url = SecretUrl(f"postgresql://me:{QUOTED}@db/quiesce")
    with pytest.raises(QuiesceError) as refusal, catalog.database.transaction():
        raise sa.exc.OperationalError("SELECT", {}, Exception(f"connection to me:{PASSWORD}@db with '{QUOTED}' failed"))
    told = "".join(traceback.format_exception(refusal.value)).partition("The above")[0]
    assert "postgresql://me:***@db/quiesce" in refusal.value.message
    assert "pA55" not in refusal.value.message
    assert refusal.value.__suppress_context__
    assert "direct cause" not in told


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=4, max_size=20), st.sampled_from(["{}", "x {} y", "'{}'"]))
def test_no_spelling_of_a_password_is_shown(password, around):
    """Broken: a driver that quotes the password in another way would show it."""
    url = SecretUrl(sa.URL.create("postgresql", "me", password, "db").render_as_string(hide_password=False))
    for spelling in (password, quote(password, safe=""), quote_plus(password), repr(password)[1:-1]):
        assert (
            spelling not in url.without_secrets(Exception(around.format(spelling))).replace("***", "")
            or spelling in "xyException"
        )
    assert quote(password, safe="") not in str(url) or quote(password, safe="") in "postgresql://me:***@db"


WRITE = """
import sys
from quiesce.catalog.journal import Journal
from quiesce.catalog.steps import Record
from quiesce.catalog.store import Catalog
from tests.samples import KEY, node

catalog = Catalog(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
journal = Journal(catalog, KEY, "checkpoint")
for number in range(20):
    with journal.step(Record(f"{sys.argv[2]}{number}")):
        catalog.checkpoints.add(node(f"{sys.argv[2]}{number}"), "<domain/>", head_parent=None)
"""


@pytest.mark.parametrize("attempt", range(4))
def test_processes_open_a_new_catalog_at_once(attempt, url, tmp_path):
    """Broken: of two first commands, one would fail for "table exists" or "database is locked"."""
    receive, send = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(send)
                os.read(receive, 1)  # until all are there: the parent closes the pipe
                Catalog(url).close()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    os.close(receive)
    os.close(send)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
    with sqlite3.connect(tmp_path / "state" / "catalog.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(REVISION,)]
    connection.close()


def test_an_error_does_not_show_the_room_that_a_journal_reserves(catalog):
    """Broken: the message would have a thousand dashes, and what matters stand behind them."""
    with catalog.database.transaction() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(QuiesceError, match="readonly") as refused:
        Journal(catalog, KEY, "delete")
    assert "----" not in refused.value.message


def test_two_processes_write_at_once(url, catalog, tmp_path):
    """Broken: two operations at a time would lose one's record, or fail for "database is locked"."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, url, key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for key in "ab"
    ]
    for process in writers:
        assert process.stdout.readline() == "ready\n"
    for process in writers:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(30) for process in writers] == [0, 0]
    for process in writers:
        process.stdin.close()
        process.stdout.close()
    assert sorted(ids(catalog)) == sorted(f"{key}{number}" for key in "ab" for number in range(20))
    with sqlite3.connect(tmp_path / "state" / "catalog.db") as connection:
        assert connection.execute("SELECT count(*), sum(done) FROM steps").fetchone() == (40, 40)
    connection.close()
