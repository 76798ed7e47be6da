"""Windows guests, as the host sees them: a real guest, a real port and real freezes, and a qemu-guest-agent that plays VSS."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from lab import Image, Machine, SavedMachine, ticker, windows_guest
from lab.standstill import Standstill
from lab.waits import longest_wait_ms
from lab.windows import windows
from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.guests import vss as vss_module
from quiesce.model.errors import ConsistencyError
from quiesce.operations.checkpoint import checkpoint
from tests.host import Quiesce
from tests.vm.test_deadman import CHECKPOINT_WITH_A_HANGING_SWITCH


@pytest.fixture
def plain(image: Image, booted: SavedMachine) -> Iterator[Machine]:
    """A running guest without our agent, that writes to both its filesystems all the time."""
    with Machine(image, start_from=booted) as machine:
        ticker.start(machine)
        yield machine


@pytest.fixture
def standstill(plain: Machine) -> Iterator[Standstill]:
    with Standstill([plain]) as standstill:
        yield standstill


def assert_nothing_left(machine: Machine, quiesce: Quiesce) -> None:
    """No checkpoint was recorded, and no overlay remains."""
    assert quiesce("tree", machine.name)["checkpoints"] == []
    assert {path.name for path in machine.directory.glob("*.qcow2")} == {"vda.qcow2", "vdb.qcow2"}


def assert_writes_go_on(machine: Machine) -> None:
    before = ticker.ticks(machine)
    time.sleep(1)
    assert ticker.ticks(machine) > before, "a filesystem is still frozen"


def test_a_checkpoint_through_vss(plain: Machine, quiesce: Quiesce) -> None:
    """The label rests on a hold that was real: nothing was written to the held filesystem from the freeze to the thaw."""
    with windows(plain, "ok") as guest:
        report = quiesce("writers", plain.name)
        assert (report["expected_consistency"], report["agent_version"]) == ("application", "qemu-ga 107.0.1")
        assert [(writer["id"], writer["grade"]) for writer in report["writers"]] == [("vss", "held")]
        node = quiesce("checkpoint", plain.name, "--name", "one")
        text = quiesce.run("show", f"{plain.name}@one")
    assert node["consistency"] == "application"
    (writer,) = node["writers"]
    assert (writer["id"], writer["grade"], writer["outcome"]) == ("vss", "held", "stable")
    assert writer["version"] == "Windows Server 2022 Standard"
    assert "VSS held 3 volumes" in writer["reason"]
    assert [(item["mountpoint"], item["state"]) for item in node["filesystems"]] == [
        ("C:\\", "thawed"),
        ("D:\\", "thawed"),
        ("System Reserved", "thawed"),
        ("E:\\", "skipped"),
    ]
    assert 0 < node["stall_ms"] < 10_000
    assert text.returncode == 0, text
    assert "held" in text.stdout
    assert guest.names() == ["preparing", "frozen", "thawed"]
    frozen, thawed = guest.when("frozen"), guest.when("thawed")
    ticks = [tuple(map(int, line.split())) for line in plain.run("cat /run/ticks").stdout.splitlines()]
    assert not [tick for tick in ticks if tick[0] > frozen and tick[1] < thawed], "a write went through while all stood still"
    assert [tick for tick in ticks if tick[0] < thawed < tick[1]], "no write waited"
    assert_writes_go_on(plain)


def test_a_slow_preparation_is_waited_for(plain: Machine, quiesce: Quiesce, standstill: Standstill) -> None:
    """VSS may prepare for longer than it may hold: the window counts from when all stands still."""
    with windows(plain, "slow-freeze") as guest:
        node = quiesce("checkpoint", plain.name)
    assert node["consistency"] == "application"
    assert node["phases_us"]["freeze"] > 11e6
    assert standstill.net_ms(plain, guest.when("frozen"), guest.when("thawed")) < 10_000
    assert_writes_go_on(plain)


@pytest.mark.parametrize(
    ("scenario", "text", "events"),
    [
        pytest.param(
            "writer-fails-at-freeze",
            "DoSnapshotSet exited without Frozen event",
            ["preparing", "refused"],
            marks=pytest.mark.long,
        ),
        ("hold-times-out", "couldn't hold writes: fsfreeze is limited up to 10 seconds", ["preparing", "frozen", "expired"]),
        pytest.param(
            "count-mismatch", "VSS froze 3 volumes and thawed 2", ["preparing", "frozen", "thawed"], marks=pytest.mark.long
        ),
    ],
    ids=["writer-fails-at-freeze", "hold-times-out", "count-mismatch"],
)
def test_what_vss_disowns_is_not_kept(plain: Machine, quiesce: Quiesce, scenario: str, text: str, events: list[str]) -> None:
    """Unless a crash image is enough; then it is called one, and says why. tests/unit/test_windows.py has all failures."""
    with windows(plain, scenario) as guest:
        error = quiesce("checkpoint", plain.name, expect=6)["error"]
        assert text in error["message"]
        (writer,) = error["details"]["writers"]
        assert (writer["id"], writer["grade"]) == ("vss", "crash")
        assert text in writer["reason"]
        assert_nothing_left(plain, quiesce)
        kept = quiesce("checkpoint", plain.name, "--require", "crash")
    assert kept["consistency"] == "crash"
    if "frozen" in events:  # else nothing of the guest is in it
        (writer,) = kept["writers"]
        outcome = {"hold-times-out": "timeout", "count-mismatch": "inconsistent"}[scenario]
        assert (writer["grade"], writer["outcome"]) == ("crash", outcome)
    assert guest.names() == events * 2
    assert_writes_go_on(plain)


def test_a_freeze_that_answers_too_late_is_thawed(
    plain: Machine, quiesce: Quiesce, monkeypatch: pytest.MonkeyPatch, standstill: Standstill
) -> None:
    """The host has given up on it, the guest is frozen all the same: it must not stay so, nor its agent count as frozen."""
    monkeypatch.setattr(vss_module, "VSS_PREPARE_S", 3.0)
    catalog = Catalog(f"sqlite:///{quiesce.environment['QUIESCE_CATALOG']}")
    warnings: list[object] = []
    with windows(plain, "freeze-hangs") as guest:
        with pytest.raises(ConsistencyError, match="did not freeze within the window"):
            checkpoint(Context("qemu:///system", catalog, warnings.append), plain.name, name="late")
        catalog.close()
        assert plain.domain.fsThaw() == 0, "something was left frozen"
        assert_nothing_left(plain, quiesce)
    assert guest.names() == ["preparing", "frozen", "thawed"]
    assert not [event for event in warnings if "confirm" in str(event)]
    assert standstill.longest_ms(plain, ticker.waits(plain)) < 11_000
    assert_writes_go_on(plain)


def test_the_host_process_killed_while_all_is_frozen(plain: Machine, quiesce: Quiesce, standstill: Standstill) -> None:
    """VSS itself lets go after 10 s. Its agent counts as frozen until somebody thaws: that is said, with what to do."""
    with windows(plain, "ok") as guest:
        process = subprocess.Popen(
            [sys.executable, "-c", CHECKPOINT_WITH_A_HANGING_SWITCH, plain.name, "10"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=quiesce.environment,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "FROZEN\n"
        process.kill()
        process.communicate()
        assert "virsh domfsthaw" in quiesce.fails("checkpoint", plain.name, code=5)
        time.sleep(11)
        with contextlib.suppress(libvirt.libvirtError):  # VSS says that it was held for too long
            plain.domain.fsThaw()
        assert_nothing_left(plain, quiesce)
        assert quiesce("checkpoint", plain.name)["consistency"] == "application"
    assert guest.names() == ["preparing", "frozen", "expired", "preparing", "frozen", "thawed"]
    assert longest_wait_ms(ticker.waits(plain)) > 9_000
    assert standstill.longest_ms(plain, ticker.waits(plain)) < 12_000


def test_a_linux_guest_with_qemu_ga_alone_is_refused(plain: Machine, quiesce: Quiesce) -> None:
    """Its freeze knows no deadline and no application."""
    for verb in ("checkpoint", "writers"):
        assert "quiesce guest install" in quiesce.fails(verb, plain.name, code=5)
    assert_nothing_left(plain, quiesce)


ROLE = "/usr/local/lib/windows_guest.py"
HERE = "/run/original"
"""There is such a file in the VM, and none in a copy, which starts with an empty /run."""
LINUX_ALONE = f"[Unit]\nConditionPathExists={HERE}\n"
ROLE_UNIT = f"""
[Unit]
ConditionPathExists=!{HERE}
[Service]
ExecStart=/usr/bin/python3 -I {ROLE} ok 600
[Install]
WantedBy=multi-user.target
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_checkpoint_through_vss_is_booted_aside(plain: Machine, quiesce: Quiesce) -> None:
    """Broken: a copy of a Windows guest, which has no agent of ours, could not be verified."""
    plain.write_file(ROLE, Path(windows_guest.__file__).read_bytes())
    plain.write_file("/etc/systemd/system/windows.service", ROLE_UNIT.encode())
    plain.run("mkdir /etc/systemd/system/qemu-guest-agent.service.d")
    plain.write_file("/etc/systemd/system/qemu-guest-agent.service.d/copy.conf", LINUX_ALONE.encode())
    plain.run(f"touch {HERE} && systemctl daemon-reload && systemctl enable windows && sync", timeout=120)
    with windows(plain, "ok"):
        quiesce("checkpoint", plain.name, "--name", "one")
    found = quiesce("verify", f"{plain.name}@one", timeout=800)
    print(found)
    assert (found["proof"]["state"], found["differs"], found["recorded"]) == ("proven", False, True)
    (writer,) = found["proof"]["writers"]
    assert (writer["id"], writer["state"]) == ("vss", "proven")
    assert writer["checks"] == ["the guest answers, and VSS held all its volumes"]
    assert_writes_go_on(plain)
