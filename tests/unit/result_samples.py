"""One result of each verb, made up: with every field set, and where a field may be missing, a second one without it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from quiesce.applications.changes import ChangeKind, WriterChange
from quiesce.catalog.exported import Export, ExportedDisk, ExportedFile
from quiesce.disks.merges import Waiting
from quiesce.hypervisor.vm import PowerState
from quiesce.model.divergence import Agreement, Finding, ServerFindings
from quiesce.model.errors import DivergenceError, NotFoundError, QuiesceError
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.groups import Group, Member, Tier
from quiesce.model.proof import Proof, ProofState, WriterProof
from quiesce.model.reports import Filesystem, FreezeState, OpenFiles, Outcome, WriterReport
from quiesce.model.settings import Settings, Type
from quiesce.model.timeline import Bar
from quiesce.model.tree import GroupPart, Kind, MachineFile, Role, Tree, Witness
from quiesce.operations.content import Content, ContentState, ImageContent
from quiesce.operations.delete import Deleted
from quiesce.operations.diff import Difference, DiskDifference, DiskSide
from quiesce.operations.divergence import Divergence
from quiesce.operations.doctor import Diagnosis, Kept, Treated
from quiesce.operations.export import Exported
from quiesce.operations.group import Shown
from quiesce.operations.group_checkpoint import Taken
from quiesce.operations.group_restore import GroupRestored
from quiesce.operations.group_verify import GroupProven
from quiesce.operations.guest_agent_file import AgentFile
from quiesce.operations.guest_install import Installed
from quiesce.operations.import_ import Imported
from quiesce.operations.rebuild import Rebuilt
from quiesce.operations.report import CheckpointReport
from quiesce.operations.restore import Restored
from quiesce.operations.start import Started
from quiesce.operations.verify import Proven
from quiesce.operations.vms import VmSummary
from quiesce.operations.writers import GuestReport
from quiesce.repair.faults import LostFiles, WrongManifest
from quiesce.storage.port import Aside
from tests.samples import node

POSTGRESQL = WriterReport(
    id="postgresql:17/main",
    application="postgresql",
    version="17.11",
    level=Level.BACK_END,
    grade=Grade.NIL_REDO,
    role="primary",
    position={"timeline": "1", "insert_lsn": "0/14EECB8"},
    data_directory="/var/lib/postgresql/17/main",
    warnings=("no archive",),
    timings_us={"hold": 1200},
)
REDIS = WriterReport(
    id="redis:6380",
    application="redis",
    version="unknown",
    level=Level.BACK_END,
    grade=Grade.REFUSED,
    reason="it wants a password",
    required=False,
    outcome=Outcome.NON_RETRYABLE,
    last_error="hold: timeout",
)
UNACCOUNTED = WriterReport(
    id="unaccounted:shop.service",
    application="not accounted for",
    version="unknown",
    level=Level.BACK_END,
    grade=Grade.CRASH,
    reason="not accounted for: /usr/sbin/shopd of shop.service writes /srv/shop/orders",
    outcome=Outcome.NON_RETRYABLE,
    not_accounted_for=OpenFiles("/usr/sbin/shopd", "shop.service", ("/srv/shop/orders",), 4, kept=True),
)
ROOT = Filesystem("/", "ext4", "/dev/vda1", FreezeState.THAWED, freeze_us=15321)
RUN = Filesystem("/run", "tmpfs", "tmpfs", FreezeState.SKIPPED, "not on a disk")
WITNESS = Witness("host1", "uuid-3", "mail1", (POSTGRESQL,))
PART = GroupPart("g1", "shop", "before", ("n1", "n2"), 1734, (WITNESS, Witness("host1", "uuid-4", "old1", (), "it is off")))
PROOF = Proof(
    ProofState.RECOVERED,
    "2026-01-01T01:00:00+00:00",
    "redis:6380 recovered when it started",
    94,
    boot_ms=61_000,
    writers=(
        WriterProof(
            "postgresql:17/main",
            ProofState.PROVEN,
            "replayed what its grade claims and not a byte more: 512 bytes of its log, from 0/80 to 0/280",
            Grade.STANDS_STILL,
            redo_bytes=512,
            answered_ms=58_000,
            checks=("pg_amcheck --heapallindexed: every table and index of every database",),
            evidence=("redo starts at 0/80",),
        ),
        WriterProof("redis:6380", ProofState.RECOVERED, "recovered", Grade.CLEAN, True, False, notes=("a note",)),
    ),
    left_out=("filesystem",),
    evidence=("Kernel panic",),
)
FULL = node(
    "n1",
    name="vor dem Größten",
    targets=("vda", "vdb"),
    consistency=Consistency.APPLICATION,
    parent="n0",
    excluded=("vdc",),
    files=(MachineFile(Role.NVRAM, "/images/n1.nvram.fd"), MachineFile(Role.TPM, "/images/n1.tpm")),
    stall_us=186_449,
    writers=(POSTGRESQL, REDIS),
    filesystems=(ROOT, RUN),
    phases_us={"hold": 1200, "freeze": 15321},
    guest_clock_ns={"held": 5, "released": 6},
    warnings=("vdc is left out",),
    group=PART,
    changed=("/images/n0.vda.qcow2",),
    proof=PROOF,
    spoilt="2026-01-02T00:00:00+00:00",
)
"""A checkpoint with every field set."""
PROVEN = Proof(ProofState.PROVEN, "2026-01-01T01:00:00+00:00", "it came up; it has no application", 40)
PLAIN = node("n0", off=True)
RECORDED = ImageContent("/images/n1.vda.qcow2", ContentState.RECORDED)
DB = Member("host1", "uuid-2", "db1", Tier.BACK)
SHOP = Group("shop", (DB,), ("mail",))
SERVERS = (
    ServerFindings(
        "db1", (Finding("mariadb:main", Agreement.MOVED, "has moved"), Finding("redis", Agreement.AGREES, "stands"))
    ),
    ServerFindings.whole("old1", Agreement.UNKNOWN, "it is off"),
    ServerFindings("web2", ()),
)
FILES = (ExportedFile("vda.qcow2", 4096, "0" * 64), ExportedFile("domain.xml", 99, "1" * 64))
SIDES = DiskSide("/images/n0.vda.qcow2", 1 << 30, 262144), DiskSide("/images/n1.vda.qcow2", None, None)

DIFFERENCE = Difference(
    vm="web1",
    first=PLAIN,
    second=FULL,
    common_ancestor=PLAIN,
    one_line=True,
    disks=(
        DiskDifference("vda", *SIDES, (), "/images/base.qcow2"),
        DiskDifference("vdc", SIDES[0], None, ("second",), None),
    ),
    configuration=("--- web1@n0", "+++ web1", "-<memory/>"),
    writers=(
        WriterChange("postgresql:17/main", ChangeKind.CHANGED, POSTGRESQL, POSTGRESQL, {"insert_lsn": 512}),
        WriterChange("redis:6380", ChangeKind.ADDED, None, REDIS),
    ),
)
RESTORED = Restored(FULL, PLAIN, "11111111-2222-3333-4444-555555555555", True)

REPORT = CheckpointReport(
    "shop@before",
    "2026-01-02T00:00:00+00:00",
    (FULL, PLAIN),
    (Bar("web1", "hold back-end", 0, 1200), Bar("web1 postgresql:17/main", "held (nil-redo)", 0, 16521)),
    PART.witnesses,
    1,
)

ASIDE = Aside(
    "/i/quiesce-quarantine/20261101T000000.000000Z.web1.vda.0123456789ab.qcow2",
    "/i/web1.vda.0123456789ab.qcow2",
    datetime(2026, 11, 1, tzinfo=UTC),
)
LOST = LostFiles("web1", "before", "checkpoint 'before' can no longer be restored", ("the directory is readable",))
MANIFEST = WrongManifest("web1", "after", "the manifest of 'after' is missing or out of date")
DIAGNOSIS = Diagnosis(
    "web1",
    (Treated(LOST, LOST.remedy()), Treated(MANIFEST, MANIFEST.remedy(), done="it was written anew")),
    (Kept(ASIDE, 30),),
)

RESULTS: dict[str, tuple[list[str], str, Any]] = {
    "vms": (["vms"], "vms.vms", [VmSummary("web1", "uuid-1", PowerState.RUNNING, "ready", 3)]),
    "guest-install": (["guest", "install", "web1"], "guest_install.guest_install", Installed("0.1.0", 250000, "done")),
    "guest-agent-file": (
        ["guest", "agent-file", "quiesce-agent.pyz"],
        "guest_agent_file.guest_agent_file",
        AgentFile("quiesce-agent.pyz", 250000),
    ),
    "writers": (
        ["writers", "web1"],
        "writers.writers",
        GuestReport("0.1.0", (POSTGRESQL, REDIS, UNACCOUNTED), (ROOT, RUN), Consistency.CRASH),
    ),
    "settings": (["settings", "web1"], "settings.settings", Settings(Type.STANDARD, Consistency.FILESYSTEM, True, ("vdb",))),
    "checkpoint": (["checkpoint", "web1"], "checkpoint.checkpoint", FULL),
    "checkpoint-off": (["checkpoint", "web1"], "checkpoint.checkpoint", PLAIN),
    "tree": (["tree", "web1"], "tree.tree", Tree.of([PLAIN, replace(FULL, hidden=True), node("n2", parent="n1")], "n1")),
    "show": (["show", "web1@n1"], "show.show_checkpoint", FULL),
    "diff": (["diff", "web1@n0", "web1@n1"], "diff.diff", DIFFERENCE),
    "diff-now": (
        ["diff", "web1@n0"],
        "diff.diff",
        replace(DIFFERENCE, second=None, common_ancestor=None, one_line=False, writers=None, configuration=()),
    ),
    "divergence": (["divergence", "web1@n1"], "divergence.divergence", Divergence((FULL,), SERVERS)),
    "divergence-none": (["divergence", "web1@n0"], "divergence.divergence", Divergence((PLAIN,), SERVERS[2:])),
    "restore": (["restore", "web1@n1"], "restore.restore", RESTORED),
    "restore-discarding": (["restore", "web1@n1"], "restore.restore", replace(RESTORED, safety=None, started=False)),
    "verify": (["verify", "web1@n1"], "verify.verify", Proven(FULL, PROOF, True)),
    "settle": (["settle", "web1@n1"], "settle.settle", replace(PLAIN, kind=Kind.SETTLED, parent="n1")),
    "report": (["report", "web1@n1"], "report.report", REPORT),
    "group-report": (["group", "report", "shop@before"], "group_report.group_report", REPORT),
    "group-verify": (
        ["group", "verify", "shop@before"],
        "group_verify.group_verify",
        GroupProven(PART, (Proven(FULL, PROOF, True), Proven(PLAIN, PROVEN, False)), True),
    ),
    "verify-content": (
        ["verify", "web1@n1", "--content"],
        "verify.verify_content",
        Content("web1", "n1", (ImageContent("/images/n0.vda.qcow2", ContentState.SAME), RECORDED)),
    ),
    "rename": (["rename", "web1@n1", "new"], "rename.rename", FULL),
    "delete": (["delete", "web1@n1"], "delete.delete", Deleted((FULL, PLAIN), (Waiting("n1", "two are based on it"),))),
    "export": (
        ["export", "web1@n1", "/exports/one"],
        "export.export",
        Exported("/exports/one", Export(1, FULL, (ExportedDisk("vda", "vda.qcow2", 1 << 30),), FILES, "nvram.fd", "tpm.state")),
    ),
    "import": (
        ["import", "/exports/one", "--to", "/images", "--same"],
        "import_.import_vm",
        Imported("web1", "uuid-1", "/images", False, PROOF),
    ),
    "group-create": (["group", "create", "shop", "db1:back", "@mail"], "group_create.create", SHOP),
    "group-add": (["group", "add", "shop", "db1:back"], "group_add.add", SHOP),
    "group-remove": (["group", "remove", "shop", "web1"], "group_remove.remove", SHOP),
    "group-forget": (["group", "forget", "shop"], "group_forget.forget", SHOP),
    "group-list": (["group", "list"], "group_list.list_groups", [Shown(SHOP, (DB,), (PART,)), Shown(Group("none"), (), ())]),
    "group-show": (["group", "show", "shop"], "group_show.show_group", Shown(SHOP, (DB,), (PART,))),
    "group-checkpoint": (["group", "checkpoint", "shop"], "group_checkpoint.group_checkpoint", Taken(PART, (FULL, PLAIN))),
    "group-restore": (
        ["group", "restore", "shop@before"],
        "group_restore.group_restore",
        GroupRestored(PART, (FULL, PLAIN), (RESTORED, replace(RESTORED, safety=None)), True),
    ),
    "group-divergence": (
        ["group", "divergence", "shop@before"],
        "group_divergence.group_divergence",
        Divergence((FULL, PLAIN), SERVERS),
    ),
    "group-delete": (["group", "delete", "shop@before"], "group_delete.delete_checkpoint", Deleted((FULL, PLAIN), ())),
    "start": (["start", "web1"], "start.start", Started("web1", FULL)),
    "start-without": (["start", "web1"], "start.start", Started("web1", None)),
    "doctor": (["doctor"], "doctor.doctor", [DIAGNOSIS, Diagnosis("db1", ())]),
    "catalog-rebuild": (["catalog", "rebuild"], "catalog_rebuild.rebuild", Rebuilt((FULL, PLAIN), 4)),
}
"""Golden file -> the command line, the function in quiesce.cli that does the work, the result."""

ERRORS: dict[str, QuiesceError] = {
    "error": QuiesceError("it failed"),
    "error-with-hint": NotFoundError("no VM named 'größer'", hint="virsh list --all"),
    "error-with-details": DivergenceError("others would disagree", hint="--accept-divergence", details={"servers": ["db1"]}),
}
