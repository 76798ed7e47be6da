"""The agent on its real port, in a real guest."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from lab import Machine
from quiesce.hypervisor.channel import ChannelTransport
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import BusyError
from quiesce.model.reports import FreezeState
from quiesce.wire import framing
from quiesce.wire.messages import ErrorCode, Prepare, State
from quiesce.wire.requester import AgentRefusedError, Requester
from tests.host import Quiesce

TIMEOUT = 60.0


@pytest.fixture
def requester(vm: Vm) -> Iterator[Requester]:
    requester = Requester(ChannelTransport(vm))
    requester.hello("test", TIMEOUT)
    yield requester
    requester.close()


def test_small_and_idle(machine: Machine, vm: Vm) -> None:
    """The service stays below 25 MB and does not wake up by itself, before and after a conversation."""

    def talk() -> int:
        requester = Requester(ChannelTransport(vm))
        requester.hello("test", TIMEOUT)
        requester.identify(TIMEOUT)
        rss = requester.status(TIMEOUT).agent_rss_kib
        requester.close()
        return rss or 0

    rss_kib = talk()
    time.sleep(2)
    pid = machine.run("systemctl show -P MainPID quiesce-agent").stdout.strip()
    count = f"awk '/ctxt_switches/ {{ sum += $2 }} END {{ print sum }}' /proc/{pid}/status; pgrep -P {pid} | wc -l"
    before = machine.run(count).stdout.split()
    time.sleep(5)
    after = machine.run(count).stdout.split()
    wakeups = int(after[0]) - int(before[0])
    print(f"agent: resident {rss_kib / 1024:.1f} MiB, {wakeups} wake-ups in 5 s")
    assert 0 < rss_kib < 25 * 1024
    assert wakeups == 0
    assert after[1] == "0", "a conversation outlived its host"


def test_stacked_filesystems(machine: Machine, requester: Requester) -> None:
    """Nested, bind, loop, overlay, tmpfs, read-only and file-in-file mounts: each superblock once, carried ones first."""
    machine.run("""
        set -e
        mkdir -p /mnt/loop /mnt/inner /mnt/ro /mnt/bind /mnt/overlay /mnt/memory /root/upper /root/work
        truncate -s 32M /var/lib/postgresql/disk.img && mke2fs -q -t ext4 /var/lib/postgresql/disk.img
        mount -o loop /var/lib/postgresql/disk.img /mnt/loop
        truncate -s 16M /mnt/loop/inner.img && mke2fs -q -t ext4 /mnt/loop/inner.img
        mount -o loop /mnt/loop/inner.img /mnt/inner
        truncate -s 8M /root/ro.img && mke2fs -q -t ext4 /root/ro.img && mount -o loop,ro /root/ro.img /mnt/ro
        mount --bind /var/lib/postgresql /mnt/bind
        mount -t tmpfs tmpfs /mnt/memory
        mount -t overlay -o lowerdir=/etc,upperdir=/root/upper,workdir=/root/work overlay /mnt/overlay
    """)
    requester.prepare(Prepare(10_000, insist=True), TIMEOUT)
    frozen = requester.freeze(TIMEOUT)
    states = {item.mountpoint: item.state for item in frozen.filesystems}
    order = [item.mountpoint for item in frozen.filesystems if item.state is FreezeState.FROZEN]
    assert order == ["/mnt/inner", "/mnt/loop", "/var/lib/postgresql", "/"]
    assert states["/mnt/ro"] is FreezeState.SKIPPED
    assert states["/mnt/overlay"] is FreezeState.SKIPPED
    assert "/mnt/memory" not in states
    assert "/mnt/bind" not in states
    machine.run("echo still writable >/mnt/memory/file")
    thawed = requester.thaw(TIMEOUT)
    assert thawed.unbroken
    assert thawed.freeze_token == frozen.freeze_token
    machine.run("for at in / /mnt/loop /mnt/inner /mnt/bind; do touch $at/works; done")


def test_freeze_of_somebody_else(machine: Machine, requester: Requester) -> None:
    """A filesystem that another party has frozen is named before anything is held, and left as they had it."""
    machine.run("""
        mkdir -p /mnt/theirs && truncate -s 16M /root/theirs.img && mke2fs -q -t ext4 /root/theirs.img
        mount -o loop /root/theirs.img /mnt/theirs && fsfreeze -f /mnt/theirs
    """)
    with pytest.raises(AgentRefusedError, match="nobody can write to /mnt/theirs: somebody has frozen it"):
        requester.prepare(Prepare(10_000, insist=True), TIMEOUT)
    assert requester.status(TIMEOUT).state is State.IDLE
    machine.run("touch /root/writable /var/lib/postgresql/writable")
    assert "busy" in machine.run("fsfreeze -f /mnt/theirs", check=False).stderr, "their freeze was undone"
    machine.run("fsfreeze -u /mnt/theirs && touch /mnt/theirs/file")


def test_a_crash_image_can_be_had_of_any_guest(machine: Machine, quiesce: Quiesce) -> None:
    """Where the filesystems cannot be frozen by us, only who asks for no more than a crash image gets one."""
    machine.run("""
        mkdir -p /mnt/theirs && truncate -s 16M /root/theirs.img && mke2fs -q -t ext4 /root/theirs.img
        mount -o loop /root/theirs.img /mnt/theirs && fsfreeze -f /mnt/theirs
    """)
    message = quiesce.fails("checkpoint", machine.name, "--require", "filesystem", code=6)
    assert "nobody can write to /mnt/theirs: somebody has frozen it" in message
    assert quiesce("tree", machine.name)["checkpoints"] == []
    node = quiesce("checkpoint", machine.name, "--require", "crash")
    assert (node["consistency"], node["stall_ms"]) == ("crash", 0)
    machine.run("fsfreeze -u /mnt/theirs; touch /root/writable /var/lib/postgresql/writable")


def test_thaw_of_somebody_else(machine: Machine, quiesce: Quiesce, monkeypatch: pytest.MonkeyPatch) -> None:
    """A freeze that somebody broke during the window is not called consistent, and nothing of the attempt is kept."""
    from quiesce.catalog.store import Catalog
    from quiesce.context import Context
    from quiesce.model.errors import ConsistencyError
    from quiesce.operations.checkpoint import checkpoint

    machine.run("fsfreeze --version")  # in the page cache before the freeze
    real = Vm.switch

    def meddled(self: Vm, overlays: dict[str, str]) -> None:
        machine.run("fsfreeze -u /var/lib/postgresql")
        real(self, overlays)

    monkeypatch.setattr(Vm, "switch", meddled)
    catalog = Catalog(f"sqlite:///{quiesce.environment['QUIESCE_CATALOG']}")
    with pytest.raises(ConsistencyError, match="somebody thawed or mounted a filesystem"):
        checkpoint(Context("qemu:///system", catalog, lambda _: None), machine.name, name="broken")
    catalog.close()
    assert {path.name for path in machine.directory.glob("*.qcow2")} == {"vda.qcow2", "vdb.qcow2"}
    assert quiesce("tree", machine.name)["checkpoints"] == []


def test_wrong_token_and_order(requester: Requester) -> None:
    """A stranger's token and a step out of order are refused, and the attempt goes on."""
    requester.prepare(Prepare(10_000, insist=True), TIMEOUT)
    ours, requester.token = requester.token, "0" * 32
    with pytest.raises(AgentRefusedError) as refused:
        requester.freeze(TIMEOUT)
    assert refused.value.error.code is ErrorCode.WRONG_TOKEN
    requester.token = ours
    for step in (requester.thaw, requester.identify):
        with pytest.raises(AgentRefusedError) as refused:
            step(TIMEOUT)
        assert refused.value.error.code is ErrorCode.WRONG_STATE
    requester.freeze(TIMEOUT)
    assert requester.thaw(TIMEOUT).unbroken


def test_garbage_on_the_port(vm: Vm) -> None:
    """Whatever was left in the stream, the next handshake finds its way."""
    transport = ChannelTransport(vm)
    transport.send(b'{"id": 1, "op": "free', 5)
    transport.send(b"\x00\xff" * 1000 + b"\n" + b"x" * (framing.MAX_LINE + 10) + b"\n[[[[\n", 20)
    requester = Requester(transport)
    assert requester.hello("test", TIMEOUT).capabilities
    requester.close()


def test_one_conversation_at_a_time(vm: Vm, requester: Requester) -> None:
    """A second host is told to wait, and the first is not disturbed."""
    with pytest.raises(BusyError):
        ChannelTransport(vm)
    assert requester.status(TIMEOUT).state is State.IDLE
