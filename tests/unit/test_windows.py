"""guests/vss.py: checkpoints of a Windows guest, with a qemu-guest-agent that follows a script."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lab.standstill import within
from quiesce.guests import vss as vss_module
from quiesce.guests.port import GuestRefusedError
from quiesce.guests.vss import VssGuest
from quiesce.hypervisor.domain_xml import QEMU_AGENT_PORT, Channel
from quiesce.model.errors import AgentError, ConsistencyError
from quiesce.model.grades import Consistency, Grade, Level
from quiesce.model.reports import FreezeState, Outcome
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.writers import writers
from quiesce.wire.messages import PORT_NAME, Prepare
from tests.unit.conftest import Fake
from tests.unit.windows_guest import Guest, answer, refuse, silence

SHORT_HOLD_S = 1.0
"""Where a test waits for the end of VSS's hold; elsewhere VSS's own limit leaves room for a busy machine."""
HELD_TOO_LONG = "guest-fsfreeze-thaw failed in web1: couldn't hold writes: fsfreeze is limited up to 10 seconds"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has less patience."""
    for name, seconds in (("LET_GO_S", 5.0), ("PAUSE_S", 0.01), ("ANSWER_S", 0.1)):
        monkeypatch.setattr(vss_module, name, seconds)


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def host(fake: Fake, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A running VM in which `guest` answers, and nothing of ours."""
    fake.vm.start()
    facts, switch = fake.vm.facts, fake.vm.switch
    port = {QEMU_AGENT_PORT: Channel(QEMU_AGENT_PORT, connected=True)}

    def noted(overlays: Any) -> None:
        guest.diary.append("switch held" if guest.held else "switch")
        switch(overlays)

    monkeypatch.setattr(fake.vm, "facts", lambda: replace(facts(), channels=port))
    monkeypatch.setattr(fake.vm, "switch", noted)
    monkeypatch.setattr(fake.host, "uri", "fake:///", raising=False)
    monkeypatch.setattr(vss_module, "QemuAgent", lambda _vm: guest)
    monkeypatch.setattr(vss_module, "Vm", lambda _uri, _name: SimpleNamespace(name="web1", close=lambda: None))
    return fake


def take(host: Fake, required: Consistency = Consistency.APPLICATION, window_s: float = 5.0) -> Any:
    return checkpoint(host.context, "web1", name="c", required=required, window_s=window_s)


# -- a whole checkpoint


def test_a_checkpoint_of_a_windows_guest(host, guest):
    """Broken: Windows guests could only have crash-consistent checkpoints."""
    node = take(host)
    assert node.consistency is Consistency.APPLICATION
    assert guest.diary == ["freeze", "switch held", "thaw"]
    (vss,) = node.writers
    assert (vss.id, vss.application, vss.level, vss.version) == (
        "vss",
        "VSS (Windows)",
        Level.SYSTEM,
        "Windows Server 2022 Standard",
    )
    assert (vss.grade, vss.outcome) == (Grade.HELD, Outcome.STABLE)
    assert vss.reason.startswith("VSS held 3 volumes")
    assert set(vss.timings_us) == {"freeze", "held", "thaw"}
    assert [(item.mountpoint, item.state) for item in node.filesystems] == [
        ("C:\\", FreezeState.THAWED),
        ("D:\\", FreezeState.THAWED),
        ("System Reserved", FreezeState.THAWED),
        ("E:\\", FreezeState.SKIPPED),
    ]
    assert node.stall_us > 0
    assert node.guest_clock_ns == {}
    assert node.warnings == ()


def test_the_preparation_of_vss_is_no_part_of_the_window(host, guest):
    """Broken: a guest whose writers need longer to prepare than volumes may be held could never be checkpointed."""

    def slowly() -> int:
        time.sleep(2 * SHORT_HOLD_S)
        return 3

    guest.on_freeze = slowly
    node = take(host, window_s=SHORT_HOLD_S)
    assert node.consistency is Consistency.APPLICATION
    assert node.stall_us >= 2 * SHORT_HOLD_S * 1e6  # an upper bound, for VSS does not tell when it began to hold


FAILURES = {
    "the freeze fails": (
        {"on_freeze": refuse("failed to add C:\\ to snapshot set: 0x8004230f")},
        "failed to add C:",
        Outcome.RETRYABLE,
    ),
    "nothing is frozen": ({"on_freeze": answer(0)}, "no volume to hold", Outcome.RETRYABLE),
    "the hold expires": ({"on_thaw": refuse(HELD_TOO_LONG)}, "couldn't hold writes", Outcome.TIMEOUT),
    "the backup fails": ({"on_thaw": refuse("failed to complete backup")}, "failed to complete backup", Outcome.RETRYABLE),
    "a volume is missing": ({"on_thaw": answer(2)}, "froze 3 volumes and thawed 2", Outcome.INCONSISTENT),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_whatever_vss_says_against_it_is_told_and_nothing_is_kept(failure, host, guest):
    """Broken: what VSS disowns would be called application-consistent, or a failed attempt would leave something behind."""
    script, text, _ = FAILURES[failure]
    vars(guest).update(script)
    before = dict(host.vm.sources()), set(host.host.storage.files)
    with pytest.raises(ConsistencyError, match=r"application-consistent|application is required") as error:
        take(host)
    assert text in error.value.message
    assert error.value.details["writers"][0]["grade"] == "crash"
    assert text in error.value.details["writers"][0]["reason"]
    assert (dict(host.vm.sources()), set(host.host.storage.files)) == before
    assert host.tree().checkpoints == ()
    assert not guest.counts_as_frozen


@pytest.mark.parametrize("failure", FAILURES)
def test_where_less_is_enough_it_has_its_true_label(failure, host, guest):
    """Broken: a fallback would carry a label that VSS did not vouch for."""
    script, text, outcome = FAILURES[failure]
    vars(guest).update(script)
    node = take(host, Consistency.CRASH)
    assert node.consistency is Consistency.CRASH
    if "on_thaw" in script:
        (vss,) = node.writers
        assert (vss.grade, vss.outcome) == (Grade.CRASH, outcome)
        assert text in vss.reason
    else:
        assert any(text in warning for warning in host.warnings())
    assert not guest.counts_as_frozen


def test_less_is_never_filesystem_consistent(host, guest):
    """Broken: volumes that VSS let go of before the switch would be said to have stood still."""
    guest.on_thaw = refuse(HELD_TOO_LONG)
    with pytest.raises(ConsistencyError, match="filesystem is required"):
        take(host, Consistency.FILESYSTEM)


def test_a_freeze_that_comes_late_is_thawed_all_the_same(host, guest):
    """Broken: qemu-ga would count as frozen for ever, and refuse every backup from then on."""

    def late() -> int:
        guest.busy_until = time.monotonic() + 0.3
        return silence()

    guest.on_freeze = late
    with pytest.raises(ConsistencyError, match="did not freeze within the window"):
        take(host)
    assert guest.diary == ["freeze", "thaw"]
    assert not guest.counts_as_frozen
    assert host.warnings() == []


def test_a_guest_that_never_answers_again_does_not_keep_us(host, guest, monkeypatch):
    """Broken: a hung guest would hang the host's side, or its user never learn how it stands."""
    monkeypatch.setattr(vss_module, "LET_GO_S", 1.0)

    def never() -> int:
        guest.busy_until = time.monotonic() + 3600
        return silence()

    guest.on_freeze = never
    with within(10, at_least=1.0), pytest.raises(ConsistencyError):
        take(host)
    (warning,) = host.warnings()
    assert "does not confirm that it has thawed" in warning
    assert "virsh domfsthaw web1" in warning


def test_a_guest_that_is_gone_is_not_waited_for(host, guest):
    """Broken: whoever stops a guest in the middle of a checkpoint would wait a minute for nothing."""

    def go() -> int:
        guest.here, guest.busy_until = False, time.monotonic() + 3600
        raise AgentError("qemu-guest-agent of web1 does not answer: not connected")

    guest.on_freeze = go
    with within(vss_module.LET_GO_S), pytest.raises(ConsistencyError, match="not connected"):
        take(host)


def test_a_thaw_without_an_answer_is_no_success(host, guest):
    """Broken: silence would be taken for consent."""

    def thawing() -> int:
        guest.busy_until = time.monotonic() + 0.2
        return silence()

    guest.on_thaw = thawing
    with pytest.raises(ConsistencyError, match="thaw failed"):
        take(host)
    assert guest.diary[:3] == ["freeze", "switch held", "thaw"]
    assert not guest.counts_as_frozen
    assert host.tree().checkpoints == ()


def test_a_switch_that_takes_longer_than_vss_holds_is_given_up(host, guest, monkeypatch):
    """Broken: a checkpoint would be waited for that VSS has long disowned; worse, it would be kept."""
    monkeypatch.setattr(vss_module, "VSS_HOLD_S", SHORT_HOLD_S)
    switch = host.vm.switch

    def slowly(overlays: Any) -> None:
        time.sleep(2 * SHORT_HOLD_S)
        switch(overlays)

    monkeypatch.setattr(host.vm, "switch", slowly)
    with pytest.raises(ConsistencyError, match="switch failed: libvirt did not return"):
        take(host)
    assert guest.diary == ["freeze", "thaw", "switch"]
    assert host.vm.sources() == {"vda": "/i/vda.qcow2"}


def test_somebody_elses_freeze_is_left_alone(host, guest):
    """Broken: a backup under way would be thawed by a checkpoint that has nothing to do with it."""
    guest.held = guest.counts_as_frozen = True
    with pytest.raises(AgentError, match="qemu-guest-agent of web1 is frozen: a backup is running") as error:
        take(host)
    assert "virsh domfsthaw web1" in error.value.hint
    assert guest.held
    assert guest.diary == []


# -- the requester by itself


def test_a_thaw_that_was_late_is_disowned_even_if_vss_says_nothing(guest, monkeypatch):
    """Broken: a host that stood still in the window would trust that VSS noticed."""
    monkeypatch.setattr(vss_module, "VSS_HOLD_S", 0.1)
    vss = VssGuest("web1", guest)
    vss.prepare(Prepare(10_000, insist=True), 1)
    vss.freeze(1)
    time.sleep(0.1)
    assert not vss.thaw(1).unbroken
    (writer,) = vss.release(Level.SYSTEM, 1).writers
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.TIMEOUT)
    assert re.search(r"the thaw came after \d+\.\d s; VSS holds for 0\.1 s", writer.reason)


def test_volumes_that_vss_leaves_out_are_named_by_number(guest):
    """Broken: a disk of the VM that Windows takes for removable would be vouched for."""
    guest.on_freeze = guest.on_thaw = answer(2)
    vss = VssGuest("web1", guest)
    vss.prepare(Prepare(10_000, insist=True), 1)
    vss.freeze(1)
    assert vss.thaw(1).unbroken
    assert vss.release(Level.SYSTEM, 1).writers[0].warnings == (
        "VSS held 2 of 3 volumes; it leaves out volumes that Windows takes for removable",
    )


def test_a_guest_that_does_not_list_its_volumes_is_told_by_their_number(guest):
    """Broken: a checkpoint would say that no filesystem was frozen."""
    guest.listed = []
    vss = VssGuest("web1", guest)
    assert vss.prepare(Prepare(10_000, insist=True), 1).filesystems == ()
    (frozen,) = vss.freeze(1).filesystems
    assert (frozen.mountpoint, frozen.state, frozen.reason) == ("all volumes", FreezeState.FROZEN, "3, says VSS")
    assert vss.thaw(1).filesystems[0].state is FreezeState.THAWED


def test_closing_it_lets_go(guest):
    """Broken: an operation that fails in an unforeseen way would leave qemu-ga frozen."""
    vss = VssGuest("web1", guest)
    vss.close()
    assert guest.diary == []
    vss.prepare(Prepare(10_000, insist=True), 1)
    vss.freeze(1)
    vss.close()
    vss.close()
    assert guest.diary == ["freeze", "thaw"]


def test_a_refusal_of_the_freeze_names_the_writer_for_the_production_code(guest):
    """Broken: it would be reported like a lost connection, without VSS's words."""
    guest.on_freeze = refuse("DoSnapshotSet exited without Frozen event")
    vss = VssGuest("web1", guest)
    vss.prepare(Prepare(10_000, insist=True), 1)
    with pytest.raises(GuestRefusedError) as error:
        vss.freeze(1)
    (writer,) = error.value.writers
    assert (writer.id, writer.grade, writer.outcome) == ("vss", Grade.CRASH, Outcome.RETRYABLE)


# -- a copy that is booted aside


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vss_module, "VSS_STARTS_S", 0.5)
    monkeypatch.setattr(vss_module, "VSS_PAUSE_S", 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_copy_whose_vss_comes_up_late_is_waited_for(guest):
    """Broken: a sound checkpoint would be called failed, because Windows starts some services late."""
    answers = [refuse("VSS_E_PROVIDER_NOT_REGISTERED"), refuse("VSS_E_PROVIDER_NOT_REGISTERED")]
    guest.on_freeze = lambda: answers.pop()() if answers else 3
    (start,) = VssGuest("web1", guest).verify("trial", 60).starts
    assert (start.failure, start.checks) == (None, ("the guest answers, and VSS held all its volumes",))
    assert not guest.held


@pytest.mark.usefixtures("impatient")
def test_a_copy_whose_vss_never_holds_has_failed(guest):
    """Broken: a checkpoint whose VSS is broken would be proven, or have no proof; the guest's words would be lost."""
    guest.on_freeze = refuse("DoSnapshotSet exited without Frozen event")
    (start,) = VssGuest("web1", guest).verify("trial", 60).starts
    assert "DoSnapshotSet exited without Frozen event" in str(start.failure)
    assert start.checks == ()
    assert not guest.counts_as_frozen


@pytest.mark.usefixtures("impatient")
def test_a_copy_without_vss_is_not_judged(guest):
    """Broken: it would be called failed, although nothing is known."""
    guest.vss = False
    with pytest.raises(AgentError, match="offers no VSS"):
        VssGuest("web1", guest).verify("trial", 60)


# -- whose way it is


@pytest.mark.parametrize(
    ("os", "ports", "expected"),
    [
        ("mswindows", {QEMU_AGENT_PORT: True}, True),
        ("debian", {QEMU_AGENT_PORT: True}, False),
        ("mswindows", {QEMU_AGENT_PORT: False}, False),
        ("mswindows", {QEMU_AGENT_PORT: True, PORT_NAME: False}, False),
        ("mswindows", {}, False),
    ],
)
def test_vss_is_for_windows_guests_without_our_agent(os, ports, expected, host, guest):
    """Broken: a Linux guest would be frozen by qemu-ga, which keeps no deadline; or our own agent would be passed by."""
    guest.os = os
    facts = replace(host.vm.facts(), channels={name: Channel(name, connected) for name, connected in ports.items()})
    assert vss_module.is_windows(host.vm, facts) is expected


def test_a_linux_guest_with_qemu_ga_alone_is_refused_as_ever(host, guest):
    """Broken: it would have a checkpoint with a label that nobody in it vouches for."""
    guest.os = "debian"
    for attempt in (lambda: take(host), lambda: writers(host.context, "web1")):
        with pytest.raises(AgentError, match="has no quiesce agent") as error:
            attempt()
        assert "quiesce guest install web1" in error.value.hint
    assert guest.diary == []


def test_writers_shows_vss(host):
    """Broken: nobody could tell beforehand what a checkpoint of a Windows guest would be worth."""
    report = writers(host.context, "web1")
    assert report.agent_version == "qemu-ga 107.0.1"
    assert report.expected is Consistency.APPLICATION
    assert [(writer.id, writer.grade) for writer in report.writers] == [("vss", Grade.HELD)]
    assert [item.state for item in report.filesystems] == [FreezeState.FREEZABLE] * 3 + [FreezeState.SKIPPED]


def test_a_qemu_ga_without_vss_is_told_with_what_to_do(host, guest):
    """Broken: the user would learn from the guest's own words, which do not say what is missing."""
    guest.vss = False
    for attempt in (lambda: take(host), lambda: writers(host.context, "web1")):
        with pytest.raises(AgentError, match="offers no VSS") as error:
            attempt()
        assert "VSS Provider" in error.value.hint
    node = take(host, Consistency.CRASH)
    assert node.consistency is Consistency.CRASH
    assert any("offers no VSS" in warning for warning in host.warnings())
