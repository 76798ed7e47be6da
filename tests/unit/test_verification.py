"""agent/verification.py, agent/trial.py: what a machine that is a copy of a checkpoint tells, and what it keeps down."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from quiesce.agent import inodes, trial, verification
from quiesce.agent.inodes import InodesRead
from quiesce.agent.writers import base
from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.model.reports import Outcome
from quiesce.model.starts import CHECK, FILESYSTEMS, Did, Start
from quiesce.wire.framing import to_line
from quiesce.wire.schema import to_wire

ID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    """The machine's SMBIOS data."""
    path = tmp_path / "DMI"
    path.write_bytes(b"\1\0vendor\0\0" + f"io.quiesce.trial={ID}".encode() + b"\0\0")
    monkeypatch.setattr(trial, "TABLE", str(path))
    return path


def test_a_copy_knows_its_id(table):
    """Broken: the agent would check, and change, the VM itself."""
    assert trial.trial_id() == ID
    table.write_bytes(b"\1\0vendor\0")
    assert trial.trial_id() == ""
    table.unlink()
    assert trial.trial_id() == ""


def generate(table: Path, tmp_path: Path, listed: str = "") -> set[str]:
    """What the generator keeps down."""
    kept = tmp_path / "verify.mask"
    kept.write_text(listed)
    early = tmp_path / "early"
    early.mkdir(exist_ok=True)
    timers = tmp_path / "units"
    timers.mkdir(exist_ok=True)
    (timers / "backup.timer").touch()
    text = trial.GENERATOR_TEXT.replace("/sys/firmware/dmi/tables/DMI", str(table)).replace(trial.KEPT_DOWN, str(kept))
    script = tmp_path / "generator"
    script.write_text(text.replace("/etc/systemd/system/*.timer", f"{timers}/*.timer"))
    subprocess.run(["sh", "-eu", script, tmp_path, early, tmp_path], check=True)
    return {path.name for path in early.iterdir() if path.is_symlink() and str(path.readlink()) == "/dev/null"}


def test_nothing_acts_by_itself_in_a_copy(table, tmp_path):
    """Broken: a copy would send mail and run the nightly job."""
    down = generate(table, tmp_path, "# ours\nshop-mailer.service because it sends\n\n../../etc/passwd\n")
    assert {"timers.target", "cron.service", "postfix.service", "backup.timer", "shop-mailer.service"} <= down
    assert not any("passwd" in name for name in down)
    unit = (tmp_path / "early/quiesce-trial.service").read_text()
    assert trial.FLAG in unit
    assert (tmp_path / "early/sysinit.target.wants/quiesce-trial.service").is_symlink()


def test_everything_starts_in_a_machine_that_is_no_copy(table, tmp_path):
    """Broken: production would run without cron and timers."""
    table.write_bytes(b"\1\0vendor\0")
    assert generate(table, tmp_path) == set()
    assert list((tmp_path / "early").iterdir()) == []


class Application(ApplicationWriter):
    application = "shop"

    def __init__(self, id: str, error: Exception | None = None) -> None:
        super().__init__(id)
        self.wrong = error
        self.deadline_ns = 0
        self.let = 0

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        self.deadline_ns = deadline_ns
        if self.wrong:
            raise self.wrong
        return start

    def on_abort(self) -> None:
        self.let += 1


@pytest.fixture
def quick(tmp_path, monkeypatch) -> Path:
    """Without systemd; returns the directory of the administrator's checks."""
    monkeypatch.setattr(verification, "_wait_for_boot", lambda _: 5)
    monkeypatch.setattr(verification, "_failed_units", tuple)
    monkeypatch.setattr(verification, "_kernel_log", list)
    monkeypatch.setattr(inodes, "read_inodes", lambda *_, **__: InodesRead(7, 1, (), ()))
    monkeypatch.setattr(trial, "CHECKS", str(tmp_path))
    monkeypatch.setattr(base, "START_PATIENCE_S", 0.0)
    return tmp_path


def told(*writers: ApplicationWriter, seconds: float = 60) -> dict[str, Start]:
    answer = verification.ask_all(lambda: writers, time.monotonic_ns() + int(seconds * 1e9))
    to_line(to_wire(answer))
    return {start.id: start for start in answer.starts}


@pytest.mark.parametrize("error", [WriterError("page 3 is corrupt"), OSError(5, "I/O error"), ValueError("odd")])
def test_what_is_wrong_with_one_hides_no_other(error, quick):
    """Broken: the first damaged application would be the only one that anybody hears of."""
    bad, good = Application("shop:1", error), Application("shop:2")
    found = told(bad, good)
    assert found["shop:1"].failure
    assert found["shop:2"].failure is None
    assert (bad.let, good.let) == (1, 1)


def test_an_application_that_is_not_up_yet_is_asked_again(quick, monkeypatch):
    """Broken: a server that takes a moment longer than its service would be called damaged."""
    monkeypatch.setattr(base, "START_PATIENCE_S", 5.0)
    monkeypatch.setattr(base, "START_POLL_S", 0.01)

    class Late(Application):
        def on_verify(self, start: Start, deadline_ns: int) -> Start:
            self.wrong = ConnectionRefusedError(111, "refused") if self.let < 3 else None
            return super().on_verify(start, deadline_ns)

    late, damaged = Late("shop:1"), Application("shop:2", WriterError("page 3", Outcome.INCONSISTENT))
    found = told(late, damaged)
    assert (found["shop:1"].failure, late.let) == (None, 4)
    assert (found["shop:2"].failure, damaged.let) == ("page 3", 1)


def test_a_slow_check_leaves_time_for_the_others(quick):
    """Broken: a large database would use up all the time, and nothing else be checked."""
    writers = [Application(f"shop:{number}") for number in range(3)]
    now = time.monotonic_ns()
    told(*writers, seconds=60)
    assert [round((writer.deadline_ns - now) / 1e9) for writer in writers] == [27, 27, 54]


def test_the_administrators_checks(quick):
    """Broken: a check of the administrator's would not be run, or its failure not be told."""
    for name, text in {"books": "echo they balance", "stock": "echo missing 3 >&2; exit 4", "later.disabled": "exit 1"}.items():
        (quick / name).write_text(f"#!/bin/sh\n{text}\n")
        (quick / name).chmod(0o755)
    (quick / "open").write_text("#!/bin/sh\n")
    (quick / "open").chmod(0o777)
    found = told()
    assert found.keys() == {FILESYSTEMS, f"{CHECK}books", f"{CHECK}stock", f"{CHECK}open"}
    assert (found[f"{CHECK}books"].failure, found[f"{CHECK}books"].evidence) == (None, ("they balance",))
    assert "ended with 4: missing 3" in found[f"{CHECK}stock"].failure
    assert "can be written by others than root" in found[f"{CHECK}open"].failure


def test_a_declared_check_is_run(quick):
    """Broken: `Verify=` would be a promise that nothing keeps."""
    good, bad = Application("shop:1"), Application("shop:2")
    good.check, bad.check = ("/bin/true",), ("/bin/sh", "-c", "echo books do not balance; exit 1")
    found = told(good, bad)
    assert found["shop:1"].checks == ("/bin/true",)
    assert "books do not balance" in found["shop:2"].failure


@pytest.mark.parametrize(
    ("line", "did", "failed"),
    [
        ("EXT4-fs (vda): mounted filesystem with ordered data mode", Did.NOTHING, False),
        ("EXT4-fs (vda): recovery complete", Did.REDO, False),
        ("EXT4-fs (vda): orphan cleanup on readonly fs", Did.REDO, False),
        ("XFS (vdb): Ending recovery (logdev: internal)", Did.NOTHING, False),
        ("EXT4-fs error (device vda): ext4_lookup:1855: inode #2: comm ls: deleted inode referenced: 12", Did.NOTHING, True),
        ("XFS (vdb): Metadata corruption detected at xfs_agf_read_verify", Did.NOTHING, True),
        ("BTRFS error (device vdc): parent transid verify failed", Did.NOTHING, True),
        ("I/O error, dev vda, sector 4096 op 0x0:(READ)", Did.NOTHING, True),
    ],
)
def test_the_kernels_words_about_filesystems(line, did, failed, quick, monkeypatch):
    """Broken: a damaged filesystem would pass, or a sound one be called damaged."""
    monkeypatch.setattr(verification, "_kernel_log", lambda: ["Linux version 6", line])
    found = told()[FILESYSTEMS]
    assert (found.did, bool(found.failure)) == (did, failed)


NAMED = ("/srv/a is inode #12", "/srv is inode #12")


def test_damaged_inodes_are_named_with_the_kernels_words(quick, monkeypatch):
    """Broken: a checkpoint with a damaged filesystem would be called proven, as long as no service needs what is damaged."""
    order, error = [], "EXT4-fs error (device vda): ext4_readdir:1: inode #12: comm python3: path /srv: checksum"

    def read(_until_ns: int, wanted: frozenset[tuple[str, int]] = frozenset()) -> InodesRead:
        order.append("named" if wanted else "read")
        assert wanted <= {("vda", 12)}
        return InodesRead(9, 1, ("/srv/a: Bad message",), ("the time was over",), NAMED if wanted else ())

    monkeypatch.setattr(inodes, "read_inodes", read)
    monkeypatch.setattr(verification, "_kernel_log", lambda: order.append("log") or [error])
    application = Application("shop:1")
    application.on_abort = lambda: order.append("application")
    found = told(application)[FILESYSTEMS]
    assert found.failure == f"/srv/a: Bad message; /srv is inode #12; {error}"
    assert (found.checks, found.notes) == ((), ("the time was over",))
    assert order == ["application", "read", "log", "named"]


def test_what_was_read_is_told(quick):
    """Broken: nobody would learn whether the filesystems were read."""
    assert told()[FILESYSTEMS].checks == ("7 inodes and their directories, of 1 filesystem",)


def test_an_answer_always_fits(quick):
    """Broken: an application that says much would keep the host from hearing of the others."""

    class Talker(Application):
        def on_verify(self, start: Start, _deadline_ns: int) -> Start:
            long = "\u2028" * 5000
            lines = (long,) * 500
            position = {f"{number}{long}": long for number in range(500)}
            return replace(start, evidence=lines, notes=lines, checks=lines, position=position, failure=long)

    assert len(told(*(Talker(f"shop:{number}") for number in range(40)))) == 41
