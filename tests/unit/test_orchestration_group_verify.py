"""`quiesce group verify` from end to end on a host in memory, killed at every step."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from quiesce.guests.scripted import ScriptedGuest
from quiesce.model.errors import AgentError, BusyError, NotFoundError, ProofError, RefusedError, UsageError
from quiesce.model.groups import Tier
from quiesce.model.names import TRIAL_PREFIX, CheckpointReference
from quiesce.model.proof import ProofState
from quiesce.model.starts import Did, Start
from quiesce.operations.delete import delete
from quiesce.operations.doctor import doctor
from quiesce.operations.group_checkpoint import group_checkpoint
from quiesce.operations.group_verify import GroupProven, group_verify
from quiesce.operations.tree import tree
from quiesce.wire.messages import Verified
from tests.unit.fake_host import FakeVm
from tests.unit.test_orchestration_verify import Killed, kill_at, nothing_of_a_copy
from tests.unit.world import WINDOW_S, World

NAMES = ("web", "app", "db")
CARD = "<interface type='bridge'><mac address='{mac}'/><source bridge='br0'/><model type='virtio'/></interface>"
MACHINE = "<memory unit='MiB'>512</memory><os><type arch='x86_64'>hvm</type></os><devices>"


@pytest.fixture
def shop(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Three members, one of each tier, with a checkpoint `g` of all."""
    monkeypatch.setattr("quiesce.operations.copies.LATE_S", 0.0)
    monkeypatch.setattr("quiesce.operations.copies.POLL_S", 0.01)
    world.host.local = True
    for number, name in enumerate(NAMES):
        vm = world.vm(name)
        vm.xml = vm.xml.replace("<devices>", MACHINE + CARD.format(mac=f"52:54:00:00:00:0{number}"))
    world.group(*NAMES, web=Tier.FRONT, app=Tier.MIDDLE)
    group_checkpoint(world.context, "shop", name="g", window_s=WINDOW_S)
    for name in NAMES:
        world.guests[f"{TRIAL_PREFIX}{name}"] = ScriptedGuest()
        says(world, name, Start("postgresql:main", "postgresql", did=Did.NOTHING))
    return world


def says(world: World, name: str, *starts: Start) -> None:
    world.guests[f"{TRIAL_PREFIX}{name}"].verified = Verified(starts, (), 4000)


def run(world: World, jobs: int | None = None, **more: float) -> GroupProven:
    return group_verify(world.context, "shop@g", jobs=jobs, **more)


def proofs(world: World) -> list[ProofState | None]:
    """What is recorded of each member."""
    nodes = [tree(world.context, name).checkpoints[0] for name in NAMES]
    return [node.proof.state if node.proof else None for node in nodes]


def on_ask(world: World, do: object) -> None:
    """Calls `do` with the member's name when its copy is asked."""
    for name in NAMES:
        world.guests[f"{TRIAL_PREFIX}{name}"].on_step = lambda _, name=name: do(name)


def running(world: World) -> list[str]:
    return [vm.name for vm in world.host.vms if vm.name.startswith(TRIAL_PREFIX)]


def test_all_members_run_together_and_back_ends_are_asked_first(shop):
    """Broken: a check of a front end would fail because the copy that it needs is not there yet."""
    asked: list[tuple[str, int]] = []
    on_ask(shop, lambda name: asked.append((name, len(running(shop)))))
    result = run(shop)
    assert asked == [("db", 3), ("app", 3), ("web", 3)]
    assert [each.checkpoint.vm_name for each in result.members] == list(NAMES)
    assert (result.state, result.differs, result.together) == (ProofState.PROVEN, False, True)
    assert proofs(shop) == [ProofState.PROVEN] * 3
    nothing_of_a_copy(shop)


def test_copies_see_each_other(shop):
    """Broken: the servers of an application that need each other could only be shown to fail."""
    heard = []

    def speak(name: str) -> None:
        if name == "db":
            one, two, three = (vm.cards[0] for vm in shop.host.vms if vm.name.startswith(TRIAL_PREFIX))
            one.sendall(struct.pack("!I", 60) + b"\xff" * 6 + bytes(54))
            for card in (two, three):
                card.settimeout(5)
                heard.append(card.recv(64, socket.MSG_WAITALL))

    on_ask(shop, speak)
    run(shop)
    assert [len(each) for each in heard] == [64, 64]


def test_so_many_at_a_time_without_a_network(shop):
    """Broken: a host without memory for all could try none of them."""
    seen = []
    on_ask(shop, lambda _: seen.append((len(running(shop)), [vm.cards for vm in shop.host.vms if vm.cards])))
    result = run(shop, jobs=2)
    assert sorted(number for number, _ in seen) == [1, 2, 2]
    assert {len(cards) for _, cards in seen} == {0}
    assert not result.together
    assert result.members[0].proof.left_out == ("interface",)
    assert proofs(shop) == [ProofState.PROVEN] * 3


def test_the_group_is_as_good_as_its_worst_member(shop):
    """Broken: a group with a damaged member would be called proven, or the others not be recorded."""
    says(shop, "db", Start("postgresql:main", "postgresql", failure="page 3 is corrupt"))
    with pytest.raises(ProofError, match=r"shop@g, booted aside, is not what it claims .*\(failed\): db: .*page 3") as raised:
        run(shop)
    assert raised.value.exit_code == 12
    assert [each["vm"] for each in raised.value.details["members"]] == list(NAMES)
    assert proofs(shop) == [ProofState.PROVEN, ProofState.PROVEN, ProofState.FAILED]
    nothing_of_a_copy(shop)


def test_a_member_that_cannot_be_asked_takes_nothing_from_the_others(shop):
    """Broken: an old agent in one server would make the proofs of all others worthless."""

    def refuse(name: str) -> None:
        if name == "db":
            raise AgentError("its agent is too old")

    on_ask(shop, refuse)
    with pytest.raises(AgentError, match="too old"):
        run(shop)
    assert proofs(shop) == [ProofState.PROVEN, ProofState.PROVEN, None]
    nothing_of_a_copy(shop)


def test_a_member_that_does_not_come_up_failed(shop):
    """Broken: the others would wait for it for ever."""
    shop.host.comes_up = False
    with pytest.raises(ProofError, match="did not come up in time"):
        run(shop, timeout_s=0.05)
    assert proofs(shop) == [ProofState.FAILED] * 3


def test_what_is_refused_changes_nothing(shop):
    """Broken: some copies would be booted, and then the command be refused."""
    shop.host.memory = 1100 << 20
    with pytest.raises(RefusedError, match="76 MiB of memory free, and the copy of db would take 512") as raised:
        run(shop)
    assert "--jobs N" in str(raised.value.hint)
    assert run(shop, memory=2**27).state is ProofState.PROVEN
    shop.host.memory = 2**34
    shop.host.local = False
    with pytest.raises(RefusedError, match="cannot have a network of their own"):
        run(shop)
    assert run(shop, jobs=3).state is ProofState.PROVEN
    shop.host.local = True
    with pytest.raises(NotFoundError):
        group_verify(shop.context, "shop@gone")
    for more in ({"jobs": 0}, {"timeout_s": 0}):
        with pytest.raises(UsageError):
            run(shop, **more)
    delete(shop.context, [CheckpointReference("db", "g")], break_group=True)
    with pytest.raises(RefusedError, match="1 of its 3 parts were deleted"):
        run(shop)
    nothing_of_a_copy(shop)


def test_a_stranger_on_the_network_ends_it(shop):
    """Broken: a user of the host could listen to what copies of production say to each other."""
    start = shop.host.start_copy
    strangers = []

    def with_a_stranger(xml: str) -> None:
        start(xml)
        where = shop.host.vms[-1].cards[0].getpeername()
        strangers.append(socket.create_connection(where, 5))

    shop.host.start_copy = with_a_stranger
    with pytest.raises(Exception, match="another program of this host connected"):
        run(shop)
    for stranger in strangers:
        stranger.close()
    assert proofs(shop) == [None] * 3
    nothing_of_a_copy(shop)


def test_whenever_it_is_killed_doctor_removes_all_copies(shop):
    """Broken: a killed verification would leave VMs that run, or files that nobody dares to remove."""
    vms: dict[str, FakeVm] = {vm.name: vm for vm in shop.host.vms}
    counted = [0]
    lock = threading.Lock()

    def count() -> None:
        with lock:
            counted[0] += 1

    shop.host.on_step = count
    run(shop)
    assert counted[0] > 20
    for number in range(0, counted[0], 2):
        kill_at(shop, number)
        with pytest.raises(Killed):
            run(shop)
        shop.host.on_step = lambda: None
        doctor(shop.context, None, repair=True)
        nothing_of_a_copy(shop)
        assert [shop.names(vm) for vm in vms.values()] == [["g"]] * 3
        assert [each.found for each in doctor(shop.context, None, repair=False)] == [()] * 3
        for vm in list(shop.host.vms):
            for card in vm.cards:
                card.close()


def test_one_command_at_a_time(shop, monkeypatch):
    """Broken: copies of a group and of another VM would run on a host that has room for one of the two."""
    monkeypatch.setattr("quiesce.catalog.lock.PATIENCE_S", 0.0)
    busy = []

    def second(name: str) -> None:
        if name == "db":
            with pytest.raises(BusyError, match="quiesce group verify shop@g"):
                run(shop)
            busy.append(name)

    on_ask(shop, second)
    run(shop)
    assert busy == ["db"]
