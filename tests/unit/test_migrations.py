"""catalog/migrations: a catalog that any quiesce wrote is read by this one.

data/catalog-REVISION.sql is a catalog as the code of that revision wrote it, with one of everything. These files stay for ever
and are never written anew: they stand for the catalogs that people have. Where a class gets another form, SAMPLE says what is
expected of it now.

A new migration gets a dump of its own, written by hand with the code of its commit, once (it refuses to overwrite one):

    .venv/bin/python -m tests.unit.test_migrations
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from quiesce.catalog import database, journal, migrations
from quiesce.catalog import steps as kinds
from quiesce.catalog.checkpoints import New
from quiesce.catalog.database import REVISION
from quiesce.catalog.store import Catalog
from quiesce.model.errors import NotFoundError, QuiesceError
from quiesce.model.fingerprints import Fingerprint
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.groups import Group, Member, Tier
from quiesce.model.keys import HostIdentity, VmKey
from quiesce.model.reports import Filesystem, FreezeState, Outcome, WriterReport
from quiesce.model.settings import Settings, Type
from quiesce.model.standing import Untouched
from quiesce.model.tree import Checkpoint, DiskImage, GroupPart, Kind, MachineFile, Role, Tree, Witness

DATA = Path(__file__).parent / "data"
DUMPS = sorted(DATA.glob("catalog-*.sql"))

HOST = "8f7e6d5c4b3a29180716253443526170"
IDENTITY = HostIdentity("11111111-2222-3333-4444-555555555555", "kvm1.example.org")
DB, WEB, LONE = (VmKey(HOST, f"{number}0000000-0000-4000-8000-000000000000") for number in (1, 2, 3))
FINISHED, IN_MIDST, AT_REST = ("f" * 32, "a" * 32, "b" * 32)
"""Ids of operations."""

WRITER = WriterReport(
    id="postgresql:17/main",
    application="postgresql",
    version="17.2",
    level=Level.BACK_END,
    grade=Grade.NIL_REDO,
    reason="größer als 中",
    role="primary",
    position={"redo_lsn": "0/3000028"},
    data_directory="/var/lib/postgresql/17/main",
    warnings=("be careful",),
    timings_us={"lock": 5},
    required=False,
    outcome=Outcome.RETRYABLE,
    stateless=True,
    last_error="hold: timeout",
)
FILESYSTEMS = (
    Filesystem("/", "ext4", "/dev/vda1", FreezeState.THAWED, freeze_us=12),
    Filesystem("/boot/efi", "vfat", "/dev/vda2", FreezeState.FLUSHED, reason="vfat cannot be frozen"),
)
PART = GroupPart(
    id="d" * 32,
    group="shop",
    name="before",
    members=("1" * 32, "5" * 32),
    skew_us=321,
    witnesses=(Witness(HOST, LONE.uuid, "lone", (WRITER,)), Witness(HOST, "gone", "away", (), "it is off")),
)


def _node(digit: str, key: VmKey, name: str, kind: Kind, path: str, **others: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "id": digit * 32,
        "host": key.host,
        "vm_uuid": key.uuid,
        "vm_name": "web1" if key == WEB else "db1",
        "name": name,
        "created": f"2026-01-0{digit}T00:00:00.000+00:00",
        "kind": kind,
        "consistency": Consistency.APPLICATION,
        "required": Consistency.FILESYSTEM,
        "disks": (DiskImage("vda", path, "qcow2"),),
    }
    return Checkpoint(**{**values, **others})


FULL = _node(
    "1",
    DB,
    "before",
    Kind.PRODUCTION,
    "/images/db1.qcow2",
    excluded=("vdb",),
    files=(MachineFile(Role.NVRAM, "/images/db1.nvram"), MachineFile(Role.TPM, "/images/db1.tpm")),
    stall_us=61_000,
    writers=(WRITER,),
    filesystems=FILESYSTEMS,
    phases_us={"hold back-end": 8},
    guest_clock_ns={"held": 2**62},
    warnings=("my\u00a0vm\u200b",),
    group=PART,
)
MEMORY = _node(
    "2",
    DB,
    "with memory",
    Kind.STANDARD,
    "/images/db1.2.qcow2",
    parent=FULL.id,
    consistency=Consistency.CRASH,
    files=(MachineFile(Role.MEMORY, "/images/db1.memory"),),
)
HIDDEN = _node("3", DB, "with memory", Kind.AUTOMATIC, "/images/db1.3.qcow2", parent=FULL.id, hidden=True)
SAFETY = _node("4", DB, "safety", Kind.SAFETY, "/images/db1.4.qcow2", parent=HIDDEN.id, off=True)
WEB_PART = _node("5", WEB, "before", Kind.PRODUCTION, "/images/web1.qcow2", group=PART)

MERGED, LIVE, LEFT = "/images/db1.merged.qcow2", "/images/db1.live.qcow2", "/images/web1.left.qcow2"
DB_UNTOUCHED = Untouched({LIVE: "1767225600.123456789"}, Consistency.FILESYSTEM)
WEB_UNTOUCHED = Untouched({"/images/web1.now.qcow2": "1767225601.5"})
SETTINGS = Settings(Type.STANDARD, Consistency.CRASH, automatic=True, exclude=("vdb", "vdc"))
SHOP = Group(
    "shop",
    (
        Member(HOST, WEB.uuid, "web1", Tier.FRONT),
        Member(HOST, "elsewhere", "app", Tier.MIDDLE),
        Member(HOST, DB.uuid, "db1", Tier.BACK),
        Member(HOST, LONE.uuid, "lone", Tier.EXTERNAL),
    ),
    ("more",),
)
MORE = Group("more")
STEPS: tuple[tuple[kinds.Step, bool], ...] = (
    (kinds.MakeOverlay("vda", "/images/new.qcow2", "/images/db1.qcow2"), True),
    (kinds.WriteFile("/images/new.nvram"), True),
    (kinds.RemoveFile("/images/old.qcow2"), False),
    (kinds.Switch({"vda": "/images/new.qcow2"}), True),
    (kinds.Switch({"vda": "/images/new.qcow2"}, memory="/images/new.memory"), False),
    (kinds.Record(FULL.id), False),
    (kinds.Stop(), True),
    (kinds.PutBack(FULL.id, {"vda": LIVE}, "<before/>", untouched=DB_UNTOUCHED, safety=SAFETY, tpm="/images/db1.tpm"), True),
    (kinds.PutBack(FULL.id, {"vda": LIVE}, "<before/>", untouched=WEB_UNTOUCHED), False),
    (kinds.Hide((FULL.id, MEMORY.id)), False),
    (kinds.Rename(FULL.id), False),
    (kinds.Merge("/t", "/b", "vda", branches=("/x", "/y"), checkpoints=(HIDDEN.id, SAFETY.id), checkpoint=SAFETY.id), True),
    (kinds.Merge("/t", "/b", "vda", branches=(), checkpoints=()), False),
    (kinds.MoveBranch("/i", "/t", "/b"), False),
    (kinds.Forget(HIDDEN.id, (SAFETY.id,)), False),
    (kinds.WriteExport("/export", ("disk.qcow2", "domain.xml")), False),
    (kinds.CopyDisk("vda"), True),
    (kinds.CopyIn("/images/in.qcow2"), False),
    (kinds.Define(), False),
    (kinds.RestoreGroup("shop@before"), False),
)
NEWER: dict[str, tuple[tuple[kinds.Step, bool], ...]] = {
    "0001": (),
    "0002": ((kinds.Record(FULL.id, earlier=(HIDDEN.id,)), True), (kinds.Relabel((FULL.id, SAFETY.id)), False)),
}
NEWER["0003"] = (*NEWER["0002"], (kinds.MakePlace("/images/new"), True))
"""The steps that a catalog has besides, by its revision."""
FINGERPRINTS: dict[str, dict[str, Fingerprint]] = {
    "0001": {},
    "0002": {
        "/images/db1.qcow2": Fingerprint(393216, "1767225600.123456789", "qcow2 1073741824"),
        "/images/db1.2.qcow2": Fingerprint(196608, "1767225601", "qcow2 1073741824 db1.qcow2"),
    },
}
FINGERPRINTS["0003"] = FINGERPRINTS["0002"]


def test_the_newest_migration_is_the_one_that_the_catalog_expects():
    """Broken: catalogs would not be migrated, or each new one be taken for an old one."""
    scripts = ScriptDirectory.from_config(migrations.configuration())
    assert scripts.get_heads() == [REVISION]
    assert [path.stem.partition("-")[2] for path in DUMPS] == sorted(each.revision for each in scripts.walk_revisions())


def load(dump: Path, directory: Path) -> Path:
    path = directory / "catalog.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(dump.read_text())
    return path


@pytest.fixture(params=DUMPS, ids=lambda dump: dump.stem)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    """A catalog as an older quiesce left it."""
    catalog = Catalog(f"sqlite:///{load(request.param, tmp_path)}")
    yield catalog
    catalog.close()


def test_all_that_an_older_quiesce_wrote_is_read(opened: Catalog, request: pytest.FixtureRequest):
    """Broken: after an upgrade, checkpoints or their evidence would be lost, or a killed operation never be mended."""
    revision = request.node.callspec.params["opened"].stem.partition("-")[2]
    assert opened.fingerprints.of(DB) == FINGERPRINTS[revision]
    assert opened.fingerprints.of(WEB) == {}
    assert opened.hosts.identify(IDENTITY) == HOST
    assert opened.hosts.name(HOST) == IDENTITY.name
    assert opened.vms(HOST) == [DB, WEB, LONE]

    assert opened.checkpoints.tree(DB) == Tree((FULL, MEMORY, HIDDEN, SAFETY), SAFETY.id)
    assert opened.checkpoints.tree(WEB) == Tree((WEB_PART,), WEB_PART.id)
    assert opened.checkpoints.domain_xml(FULL.id) == "<domain><name>größer als 中</name></domain>"
    assert opened.checkpoints.counts(HOST) == {DB.uuid: 3, WEB.uuid: 1}
    assert opened.checkpoints.parts(PART.id) == [FULL, WEB_PART]
    assert opened.checkpoints.of_group("shop") == [PART]
    assert opened.checkpoints.with_file(HOST, "/images/db1.nvram") == ["before"]
    assert opened.checkpoints.with_file(HOST, "/images/web1.qcow2") == ["before"]
    assert opened.checkpoints.of_others(LONE, ["/images/db1.4.qcow2"]) == [FULL, MEMORY, SAFETY]
    assert opened.checkpoints.untouched(DB) == DB_UNTOUCHED
    assert opened.checkpoints.untouched(WEB) == WEB_UNTOUCHED
    assert opened.checkpoints.untouched(LONE) is None

    assert opened.images.made_for(DB) == [LIVE, MERGED]
    assert (opened.images.merged(DB), opened.images.live(DB)) == ({MERGED}, {LIVE})
    assert opened.images.made_for(WEB) == [LEFT]
    assert (opened.images.merged(WEB), opened.images.live(WEB)) == (set(), set())

    assert opened.groups.all() == [MORE, SHOP]
    assert opened.settings.get(DB) == SETTINGS
    assert opened.settings.get(WEB) == Settings()

    (found,) = journal.interrupted(opened, DB)
    assert (found.id, found.verb, found.started) == (IN_MIDST, "restore", "2026-01-01T00:00:00+00:00")
    assert (found.steps, found.unknown) == ((*STEPS, *NEWER[revision]), ())
    (found,) = journal.interrupted(opened, LONE)
    assert (found.id, found.verb, found.steps, found.unknown) == (AT_REST, "import", (), ())


def test_a_catalog_of_an_older_quiesce_can_be_written(opened: Catalog):
    """Broken: after an upgrade no checkpoint could be taken."""
    new = replace(FULL, id="9" * 32, name="new", parent=SAFETY.id, created="2027-01-01T00:00:00.000+00:00")
    opened.checkpoints.add(new, "<domain/>", head_parent=new.id, untouched=DB_UNTOUCHED, live=[LIVE])
    assert opened.checkpoints.tree(DB).nodes[-1] == new
    opened.checkpoints.remove(FULL, None)
    opened.groups.remove("shop")
    with pytest.raises(NotFoundError):
        opened.groups.get("shop")
    journal.finish(opened, IN_MIDST, "recovered: was undone")
    assert journal.interrupted(opened, DB) == []


def described(catalog: Catalog) -> dict[str, Any]:
    inspector = sa.inspect(catalog.database._engine)
    return {
        table: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(table)],
            inspector.get_pk_constraint(table)["constrained_columns"],
            sorted(tuple(each["column_names"]) for each in inspector.get_unique_constraints(table)),
            sorted(tuple(each["column_names"]) for each in inspector.get_indexes(table)),
            sorted((*each["constrained_columns"], each["referred_table"]) for each in inspector.get_foreign_keys(table)),
        )
        for table in sorted(inspector.get_table_names())
    }


def test_a_migrated_catalog_is_as_a_new_one(opened: Catalog, tmp_path: Path):
    """Broken: what works with a new catalog would fail with one that was upgraded, or the other way round."""
    new = Catalog(f"sqlite:///{tmp_path}/new.db")
    assert described(opened) == described(new)
    new.close()


NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{REVISION}"


def upgrade() -> None:
    op.add_column("images", sa.Column("size", sa.Integer))
    op.execute("UPDATE images SET size = 7")
    {then}
"""


@pytest.mark.parametrize("then", ["", "1 / 0"], ids=["done", "failed"])
def test_a_migration_is_done_once_and_as_a_whole(then, tmp_path, monkeypatch):
    """Broken: a catalog that was half migrated, as the power failed, could never be opened again."""
    scripts = tmp_path / "migrations"
    shutil.copytree(Path(migrations.__file__).parent, scripts)
    (scripts / "versions" / "v9999_next.py").write_text(NEXT.format(REVISION=REVISION, then=then))
    configuration = migrations.configuration()
    configuration.set_main_option("script_location", str(scripts))
    monkeypatch.setattr(migrations, "configuration", lambda: configuration)
    monkeypatch.setattr(database, "REVISION", "9999")
    path = load(DUMPS[-1], tmp_path)
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            if then:
                stack.enter_context(pytest.raises((QuiesceError, ZeroDivisionError)))
            Catalog(f"sqlite:///{path}").close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        columns = {name for _, name, *_ in connection.execute("PRAGMA table_info(images)")}
    assert (version, "size" in columns) == ((REVISION, False) if then else ("9999", True))


def write_dump() -> Path:
    """Writes data/catalog-REVISION.sql with the code as it is. To be run by hand, once for each migration: see above."""
    target = DATA / f"catalog-{REVISION}.sql"
    if target.exists():
        raise SystemExit(f"{target} is there; it stays as it is")
    steps = (*STEPS, *NEWER[REVISION])
    assert {type(step) for step, _ in steps} == set(kinds.BY_NAME.values())
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalog.db"
        catalog = Catalog(f"sqlite:///{path}")
        made = catalog.hosts.identify(IDENTITY)
        for key, image in ((DB, MERGED), (DB, LIVE), (WEB, LEFT)):
            catalog.images.note(key, image)
        catalog.checkpoints.add_together(
            [
                New(FULL, "<domain><name>größer als 中</name></domain>", FULL.id),
                New(WEB_PART, "<domain/>", WEB_PART.id, WEB_UNTOUCHED),
            ]
        )
        for node in (MEMORY, HIDDEN, SAFETY):
            catalog.checkpoints.add(node, "<domain/>", head_parent=node.id, untouched=DB_UNTOUCHED, live=[LIVE])
        catalog.checkpoints.moved(DB, MERGED, "/images/db1.qcow2", "qcow2", FINGERPRINTS[REVISION])
        catalog.groups.put(SHOP, new=True)
        catalog.groups.put(MORE, new=True)
        catalog.settings.put(DB, SETTINGS)
        named = {made: HOST}
        for key, verb, id in ((DB, "rename", FINISHED), (DB, "restore", IN_MIDST), (LONE, "import", AT_REST)):
            operation = journal.Journal(catalog, key, verb)
            named[operation.id] = id
            if id == FINISHED:
                operation.finish("done")
            for step, done in steps if id == IN_MIDST else ():
                number = operation.intend(step)
                if done:
                    operation.done(number)
        catalog.close()
        with contextlib.closing(sqlite3.connect(path)) as connection:
            for table, column in (("hosts", "id"), ("operations", "id"), ("steps", "operation")):
                for old, new in named.items():
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (new, old))  # noqa: S608
            connection.execute("UPDATE operations SET started = '2026-01-01T00:00:00+00:00'")
            connection.execute("UPDATE operations SET finished = started WHERE finished IS NOT NULL")
            connection.commit()
            DATA.mkdir(exist_ok=True)
            target.write_text("\n".join(connection.iterdump()) + "\n")
    return target


if __name__ == "__main__":
    print(write_dump())
