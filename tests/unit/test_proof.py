"""applications/proof.py: what a checkpoint claims, compared with how its applications started in a copy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.applications.mariadb import LOG_NOT_READ
from quiesce.applications.proof import judge_starts
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.proof import ProofState, WriterProof, summary, worst
from quiesce.model.reports import OpenFiles, WriterReport
from quiesce.model.starts import FILESYSTEMS, Did, FailedUnit, Start
from quiesce.model.tree import Checkpoint
from tests.samples import node

APPLICATION = {
    "postgresql": "postgresql:17/main",
    "mariadb": "mariadb:main",
    "redis": "redis:6379",
    "sqlite": "sqlite:a.service",
}
LOG = {"redo_lsn": "0/1000", "insert_lsn": "0/1500"}
INNODB = {"lsn_checkpoint": "4096", "lsn_current": "5376"}
LDAP = {"last_txn_id": "40"}
FILE = {"files": "1", "/srv/a.db": "change 7 pages 3"}


def claims(application: str, grade: Grade, position: dict[str, str] | None = None, **more: object) -> WriterReport:
    id = APPLICATION.get(application, f"{application}:it")
    return replace(WriterReport(id, application, "1", Level.BACK_END, grade, position=position or {}), **more)


def start(application: str, did: Did = Did.NOTHING, begin: str | None = None, end: str | None = None, **more: object) -> Start:
    id = APPLICATION.get(application, f"{application}:it")
    return replace(Start(id, application, did=did, redo_from=begin, redo_to=end), **more)


def told(position: dict[str, str]) -> Start:
    """By the application's own program, which says nothing of a recovery."""
    return start("external", Did.UNKNOWN, position=position, checks=("x",))


def checkpoint(*writers: WriterReport, consistency: Consistency = Consistency.APPLICATION, **more: object) -> Checkpoint:
    return replace(node("n1"), writers=writers, consistency=consistency, **more)


def judge(writer: WriterReport, found: Start | None, **more: object) -> WriterProof:
    (proof,) = judge_starts(checkpoint(writer, **more), [found] if found else [], [])
    return proof


REDO, NOTHING, UNKNOWN = Did.REDO, Did.NOTHING, Did.UNKNOWN
PG, MARIA = "postgresql", "mariadb"
STILL, NIL, CLEAN, HELD, CRASH = Grade.STANDS_STILL, Grade.NIL_REDO, Grade.CLEAN, Grade.HELD, Grade.CRASH
PROVEN, RECOVERED, FAILED, UNTRIED = ProofState.PROVEN, ProofState.RECOVERED, ProofState.FAILED, ProofState.UNTRIED


@pytest.mark.parametrize(
    ("writer", "found", "state", "differs"),
    [
        (claims(PG, STILL, LOG), start(PG, REDO, "0/1000", "0/1500"), PROVEN, False),
        (claims(PG, NIL, LOG), start(PG, REDO, "0/1000", "0/1500"), PROVEN, False),
        (claims(PG, STILL, {**LOG, "insert_lsn": "0/2000"}), start(PG, REDO, "0/1000", "0/2018"), PROVEN, False),
        (claims(PG, STILL, LOG), start(PG, REDO, "0/1000", "0/1501"), RECOVERED, True),
        (claims(PG, STILL, LOG), start(PG, REDO, "0/0F00", "0/1500"), RECOVERED, True),
        (claims(PG, STILL, LOG), start(PG, REDO, "0/1000", "0/14FF"), FAILED, True),
        (claims(PG, STILL, LOG), start(PG, NOTHING), FAILED, True),
        (claims(PG, STILL, LOG), start(PG, REDO, "0/1000", None), RECOVERED, True),
        (claims(PG, STILL, LOG), start(PG, UNKNOWN), UNTRIED, False),
        (claims(PG, CLEAN, {"redo_lsn": "0/1000"}, role="down"), start(PG, running=False), PROVEN, False),
        (claims(PG, CLEAN, {"redo_lsn": "0/1000"}), start(PG, NOTHING), PROVEN, False),
        (claims(PG, CLEAN), start(PG, REDO, "0/1000", "0/1500"), RECOVERED, True),
        (claims(PG, CRASH, {"insert_lsn": "0/9000"}), start(PG, REDO, "0/1000", "0/1500"), RECOVERED, False),
        (claims(PG, STILL, LOG), start(PG, running=False, evidence=("FATAL: no",)), FAILED, True),
        (claims(PG, CRASH, LOG), start(PG, running=False), FAILED, False),
        (claims(PG, STILL, LOG), None, FAILED, True),
        (claims(PG, STILL, LOG), start(PG, REDO, "0/1000", "0/1500", failure="page 3 of t"), FAILED, True),
        (claims(MARIA, CLEAN, INNODB), start(MARIA, NOTHING, end="4096"), PROVEN, False),
        (claims(MARIA, CLEAN, INNODB), start(MARIA, NOTHING, end="4112"), PROVEN, False),
        (claims(MARIA, CLEAN, INNODB), start(MARIA, REDO, "4096", "5376"), RECOVERED, True),
        (claims(MARIA, CLEAN, INNODB), start(MARIA, NOTHING, end="4000"), FAILED, True),
        (claims(MARIA, STILL, INNODB), start(MARIA, REDO, "4096", "5376"), PROVEN, False),
        (claims(MARIA, STILL, INNODB), start(MARIA, REDO, "4096", "5000"), FAILED, True),
        (claims(MARIA, STILL, INNODB), start(MARIA, REDO, "4096", "5400"), RECOVERED, True),
        (claims(MARIA, STILL, INNODB, reason=LOG_NOT_READ), start(MARIA, REDO, "4096", "5400"), PROVEN, False),
        (claims("redis", CLEAN), start("redis", NOTHING), PROVEN, False),
        (claims("redis", CLEAN), start("redis", REDO), RECOVERED, True),
        (claims("rabbitmq", CRASH), start("rabbitmq", REDO), RECOVERED, False),
        (claims("sqlite", CLEAN, FILE), start("sqlite", position={"/srv/a.db": "change 7 pages 3"}), PROVEN, False),
        (claims("sqlite", CLEAN, FILE), start("sqlite", position={"/srv/a.db": "change 9 pages 4"}), PROVEN, False),
        (claims("sqlite", CLEAN, FILE), start("sqlite", position={"/srv/a.db": "change 6 pages 3"}), FAILED, True),
        (claims("openldap", CLEAN, LDAP), start("openldap", position={"last_txn_id": "39"}), FAILED, True),
        (claims("openldap", CLEAN, LDAP), start("openldap", position={"last_txn_id": "41"}), PROVEN, False),
        (claims("external", CLEAN, {"sequence": "5"}), told({"sequence": "5"}), PROVEN, False),
        (claims("external", CLEAN, {"sequence": "5"}), told({"sequence": "6"}), RECOVERED, True),
        (claims("external", CRASH, {"sequence": "5"}), told({"sequence": "6"}), PROVEN, False),
        (claims("external", HELD), start("external", REDO), RECOVERED, False),
        (claims("external", CLEAN), start("external", REDO), RECOVERED, True),
        (claims("declared", STILL), start("declared", UNKNOWN), UNTRIED, False),
        (claims("declared", STILL), start("declared", UNKNOWN, checks=("/usr/bin/true",)), PROVEN, False),
        (claims("haproxy", CLEAN, stateless=True), start("haproxy", UNKNOWN), PROVEN, False),
        (claims("haproxy", CLEAN, stateless=True), None, UNTRIED, False),
        (claims("optional", CLEAN, required=False), start("optional", REDO), RECOVERED, False),
    ],
)  # fmt: skip
def test_what_is_found_is_held_against_what_is_claimed(writer, found, state, differs):
    """Broken: a lie would be called proven, or a true claim a lie."""
    proof = judge(writer, found)
    assert (proof.state, proof.differs) == (state, differs), proof.text


@pytest.mark.parametrize("grade", [grade for grade in Grade if not grade.vouched])
def test_a_torn_checkpoint_promises_no_end_of_its_log(grade):
    """Broken: a crash image, whose position is of a moment before, would be called damaged."""
    assert judge(claims(PG, grade, LOG), start(PG, REDO, "0/1000", "0/1100")).state is RECOVERED


def test_a_changed_image_is_held_against_what_it_was():
    """Broken: what is lost since somebody changed an image would be shown as an ordinary recovery."""
    lost = judge(claims(PG, CRASH, LOG), start(PG, REDO, "0/1000", "0/1100"), changed=("/i/a",), consistency=Consistency.CRASH)
    assert (lost.state, lost.differs) == (FAILED, False)
    assert "lacks the last 1,024 bytes" in lost.text


@pytest.mark.parametrize(
    ("label", "did", "failure", "state", "differs"),
    [
        (Consistency.APPLICATION, NOTHING, None, PROVEN, False),
        (Consistency.FILESYSTEM, REDO, None, RECOVERED, True),
        (Consistency.CRASH, REDO, None, RECOVERED, False),
        (Consistency.FILESYSTEM, NOTHING, "EXT4-fs error", FAILED, True),
        (Consistency.CRASH, NOTHING, "EXT4-fs error", FAILED, False),
    ],
)
def test_filesystems_that_were_frozen_have_nothing_to_recover(label, did, failure, state, differs):
    """Broken: a freeze that did not hold would go unseen."""
    found = Start(FILESYSTEMS, "filesystem", did=did, failure=failure)
    (proof,) = judge_starts(checkpoint(consistency=label), [found], [])
    assert (proof.state, proof.differs) == (state, differs)


def test_a_service_that_is_down_is_the_one_that_ran():
    """Broken: MariaDB that did not start has another id than MariaDB that runs, and its words would be lost."""
    down = Start("mariadb:mariadb.service", "mariadb", running=False, evidence=("[ERROR] InnoDB: no",))
    (proof,) = judge_starts(checkpoint(claims(MARIA, STILL, INNODB)), [down], [])
    assert (proof.id, proof.state) == ("mariadb:main", FAILED)
    assert "[ERROR] InnoDB: no" in proof.text


def test_an_application_that_is_gone_has_the_words_of_its_unit():
    """Broken: a person would be told that something did not start, and not why."""
    units = [FailedUnit("cups.service", ("paper",)), FailedUnit("redis-server.service", ("Bad file format",))]
    (proof,) = judge_starts(checkpoint(claims("redis", CLEAN)), [], units)
    assert proof.state is FAILED
    assert proof.evidence == ("redis-server.service failed:", "Bad file format")


def test_programs_that_quiesce_does_not_know_are_not_asked():
    """Broken: each stranger's process would make a proof fail."""
    stranger = claims("stranger", CRASH, not_accounted_for=OpenFiles("/bin/x", "", (), 1, True))
    assert judge_starts(checkpoint(stranger), [], []) == ()


def test_what_the_checkpoint_does_not_know_is_told_all_the_same():
    """Broken: a checkpoint without the guest would be called proven, whatever its databases had to recover."""
    starts = [
        start(PG, REDO, "0/1000", "0/1500", redo_bytes=1280),
        Start("check:books", "check", failure="they do not balance"),
    ]
    proofs = judge_starts(checkpoint(consistency=Consistency.CRASH), starts, [])
    assert [proof.state for proof in proofs] == [RECOVERED, FAILED]
    assert worst(proofs) is FAILED
    assert summary(proofs) == "check:books they do not balance"
    assert worst(proofs[:1]) is RECOVERED
    assert "1,280 bytes" in summary(proofs[:1])


def test_what_no_label_depends_on_lowers_no_proof():
    """Broken: a front end without a proof would hide that every database is proven."""
    proofs = judge_starts(checkpoint(claims("web", CLEAN, stateless=True), claims(PG, CLEAN)), [start(PG)], [])
    assert worst(proofs) is PROVEN
    assert worst([]) is PROVEN
