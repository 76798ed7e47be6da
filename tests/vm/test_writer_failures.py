"""What can go wrong with each application: a clear outcome, the application working again in time, nothing left behind."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab import Machine, workloads
from lab.load import Load
from lab.standstill import wait_for
from quiesce.hypervisor.channel import ChannelTransport
from quiesce.hypervisor.vm import Vm
from quiesce.model.grades import LEVELS, Grade
from quiesce.model.reports import Outcome, WriterReport
from quiesce.wire.messages import Prepare
from quiesce.wire.requester import Requester
from tests.host import Quiesce

TIMEOUT = 120.0
WINDOW_MS = 20_000
PROGRAMS = "PYTHONPATH=/usr/local/lib/quiesce/quiesce-agent.pyz python3 -m quiesce.testing.writer"


@contextlib.contextmanager
def talking(machine: Machine) -> Iterator[Requester]:
    with contextlib.closing(Vm("qemu:///system", machine.name)) as vm:
        requester = Requester(ChannelTransport(vm))
        requester.hello("test", TIMEOUT)
        try:
            yield requester
        finally:
            requester.close()


def by_id(writers: tuple[WriterReport, ...]) -> dict[str, WriterReport]:
    return {writer.id: writer for writer in writers}


def hold_all(requester: Requester, window_ms: int = WINDOW_MS, *, nil_redo: bool = False) -> dict[str, WriterReport]:
    """Every writer holds that can; those that cannot are passed over."""
    found = requester.prepare(Prepare(window_ms, insist=False, nil_redo=nil_redo), TIMEOUT).writers
    held = [requester.hold(level, TIMEOUT) for level in LEVELS if any(writer.level is level for writer in found)]
    return by_id(found) | by_id(tuple(writer for answer in held for writer in answer.writers))


def release_all(requester: Requester, held: dict[str, WriterReport]) -> dict[str, WriterReport]:
    levels = [level for level in reversed(LEVELS) if any(writer.level is level for writer in held.values())]
    return by_id(tuple(writer for level in levels for writer in requester.release(level, TIMEOUT).writers))


def write_file(machine: Machine, path: str, text: str, mode: str = "644") -> None:
    machine.run(f"mkdir -p {path.rpartition('/')[0]}")
    machine.write_file(path, text.encode())
    machine.run(f"chmod {mode} {path}")


REST = {Grade.CLEAN, Grade.NIL_REDO, Grade.STANDS_STILL}
KILLED = {
    "mariadb:main": "mariadbd",
    "redis:6379": "redis-server",
    "valkey:6380": "valkey-server",
    "openldap:slapd.service": "slapd",
}
"""The main process of each, which takes its children with it."""


@pytest.mark.timeout(600)
def test_killed_while_held(server: Machine) -> None:
    """Each application is killed under its hold: its own checkpoint is a crash image, and said so; the others are released."""
    load = Load(server, workloads.ALL_BUT_RABBITMQ)
    with talking(server) as requester:
        held = hold_all(requester, 60_000)
        assert {writer.grade for writer in held.values()} <= REST, held
        server.run("; ".join(f"pkill -9 -o {name}" for name in [*KILLED.values(), "postgres"]), check=False)
        server.run("pkill -9 -o -f /usr/local/bin/lab-notes; pkill -9 -o nginx; sleep 5", check=False)
        released = release_all(requester, held)
    for writer in KILLED:
        assert (released[writer].grade, released[writer].outcome) == (Grade.CRASH, Outcome.INCONSISTENT), released[writer]
        assert released[writer].last_error
    # systemd kills what is left of a service whose main process ended. Until then it stands still, and its files are at rest.
    assert released["postgresql:17/main"].grade in (Grade.STANDS_STILL, Grade.CRASH)
    assert released["sqlite:lab-notes.service"].grade is Grade.CLEAN  # its file was locked to the end, by us
    assert released["nginx:nginx.service"].grade is Grade.CLEAN  # it keeps no data, whatever becomes of it
    server.run(
        "systemctl reset-failed; systemctl restart postgresql mariadb redis-server valkey-server slapd nginx lab-notes",
        timeout=120,
    )
    server.wait_for_postgresql()
    for workload in workloads.ALL_BUT_RABBITMQ:
        assert load.writes_once(workload, 60), workload.name


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["KILL", "STOP"])
def test_agent_ends_while_everything_is_held(server: Machine, how: str) -> None:
    """The agent is killed, or stopped, with every application held: each of them takes writes again within the window."""
    load = Load(server, workloads.ALL_BUT_RABBITMQ)
    with talking(server) as requester:
        held = hold_all(requester, 12_000)
        assert {writer.grade for writer in held.values()} <= REST, held
        started = time.monotonic()
        server.run(f"kill -{how} $(pgrep -P $(systemctl show -P MainPID quiesce-agent))")
        if how == "STOP":
            time.sleep(12.5)
        assert server.run("cat /sys/fs/cgroup/system.slice/*/cgroup.freeze | sort -u").stdout.split() == ["0"]
        assert load.writes_once(workloads.WEB, 30)
        for workload in workloads.ALL_BUT_RABBITMQ:
            assert load.writes_once(workload, 30), workload.name
        print(f"all of them write again {time.monotonic() - started:.1f} s after the agent's end")
    with talking(server) as requester:
        rescue = str(requester.status(TIMEOUT).last_rescue)
        assert ("the agent died" if how == "KILL" else "the deadline passed") in rescue
        assert 4 <= int(rescue.partition(" hold(s) taken back")[0].split()[-1]) <= len(held), rescue
        assert {writer.grade for writer in hold_all(requester).values()} <= REST


@pytest.mark.timeout(600)
def test_down_credentials_and_locks(server: Machine, quiesce: Quiesce) -> None:
    """Down, refused, held by somebody else: named, before or at the hold, and what was held meanwhile is let go."""

    def refusal(*more: str) -> str:
        return quiesce.fails("checkpoint", server.name, "--window", "6", *more, code=6)

    # Somebody else's locks and pauses.
    spawn = 'exec setsid sh -c "{} "'
    server.spawn(spawn.format("(echo 'BEGIN; INSERT INTO shop.entries VALUES (\\\"mine\\\");'; sleep 40) | mariadb"))
    locker = (
        "import sqlite3, time; db = sqlite3.connect('/var/lib/lab-notes/notes.db', isolation_level=None);"
        " db.execute('BEGIN IMMEDIATE'); time.sleep(40)"
    )
    server.spawn(f'exec setsid python3 -c "{locker}"')
    server.run("valkey-cli -p 6380 client pause 40000 write; systemctl freeze slapd; systemctl freeze nginx; sleep 1")
    with talking(server) as requester:
        held = hold_all(requester, 12_000, nil_redo=True)  # a transaction is in the way of locks alone
        released = held | release_all(requester, held)
    assert released["mariadb:main"].outcome is Outcome.TIMEOUT
    assert "in a transaction for" in str(released["mariadb:main"].reason)
    assert released["sqlite:lab-notes.service"].outcome is Outcome.TIMEOUT
    assert "keeps it locked" in str(released["sqlite:lab-notes.service"].reason)
    assert released["valkey:6380"].outcome is Outcome.RETRYABLE, released["valkey:6380"]
    assert "already" in str(released["openldap:slapd.service"].reason)
    assert released["nginx:nginx.service"].grade is Grade.CLEAN
    assert released["redis:6379"].grade is Grade.CLEAN
    assert {released[name].grade for name in ("mariadb:main", "sqlite:lab-notes.service")} == {Grade.CRASH}
    assert server.run("systemctl show -P FreezerState slapd nginx").stdout.split() == ["frozen", "frozen"]  # theirs to end
    assert "openldap:slapd.service" in refusal()
    server.run(
        "systemctl thaw slapd nginx; valkey-cli -p 6380 client unpause; pkill -f 'sleep 40|BEGIN IMMEDIATE'", check=False
    )
    # Credentials.
    server.run("mariadb -e \"ALTER USER root@localhost IDENTIFIED VIA mysql_native_password USING PASSWORD('x')\"")
    server.run("redis-cli config set requirepass secret")
    message = refusal()
    assert "IDENTIFIED VIA unix_socket" in message
    assert "redis:6379" in message
    server.run("mariadb -px -e 'ALTER USER root@localhost IDENTIFIED VIA unix_socket'")
    server.run("REDISCLI_AUTH=secret redis-cli config set requirepass ''")
    # Down: cleanly, and not.
    server.run("systemctl -q enable slapd; systemctl stop slapd")  # one that nothing wants, systemd forgets
    report = {item["id"]: item for item in quiesce("writers", server.name)["writers"]}
    assert report["openldap:slapd.service"]["grade"] == "clean"
    assert report["openldap:slapd.service"]["role"] == "down"
    server.run("systemctl start slapd; sleep 1", timeout=90)
    node = quiesce("checkpoint", server.name, "--window", "40", timeout=200)
    assert node["consistency"] == "application", node
    assert not [item for item in node["writers"] if item.get("last_error")]


@pytest.mark.timeout(600)
def test_programs_scripts_and_declared_writers(bare_server: Machine, quiesce: Quiesce) -> None:
    """All three ways to be a writer, and other platforms' scripts: by their levels, released in reverse, and heeded."""
    machine = bare_server
    log = "/run/order"
    script = f'#!/bin/sh\necho "$(basename $0) $1" >>{log}\n'
    write_file(machine, "/etc/qemu/fsfreeze-hook.d/10-one.sh", script, "755")
    write_file(machine, "/etc/qemu/fsfreeze-hook.d/20-two.sh", script, "755")
    write_file(machine, "/etc/vmware-tools/backupScripts.d/vm.sh", script, "755")
    write_file(machine, "/usr/local/sbin/pre.sh", f"echo azure-pre $1 >>{log}\n", "700")
    write_file(machine, "/usr/local/sbin/post.sh", f"echo azure-post $1 >>{log}\n", "700")
    azure = '{"pluginName": "ScriptRunner", "preScriptLocation": "/usr/local/sbin/pre.sh", "preScriptParams": ["x"],'
    azure += '"postScriptLocation": "/usr/local/sbin/post.sh", "timeoutInSeconds": 20}'
    write_file(machine, "/etc/azure/VMSnapshotScriptPluginConfig.json", azure, "600")
    write_file(machine, "/usr/local/sbin/declared", f"#!/bin/sh\necho declared $1 >>{log}\necho 42\n", "755")
    declared = "[Writer]\nName=batch\nLevel=system\nHold=/usr/local/sbin/declared hold\n"
    declared += "Release=/usr/local/sbin/declared release\n"
    write_file(machine, "/etc/quiesce/writers.d/batch.conf", declared + "Position=/usr/local/sbin/declared position\n")
    machine.spawn(f"{PROGRAMS} --name front --level front-end --data /root/front --log /run/front.log")
    machine.spawn(f"{PROGRAMS} --name back --log /run/back.log")
    wait_for_writers(machine, quiesce, "external:front", "external:back")
    node = quiesce("checkpoint", machine.name, "--name", "all", "--window", "40", timeout=200)
    found = {item["id"]: item for item in node["writers"]}
    assert node["consistency"] == "application", node
    for name in ("fsfreeze-hook:10-one.sh", "fsfreeze-hook:20-two.sh", "vmware:vm.sh", "azure:scripts", "declared:batch"):
        assert found[name]["grade"] == "held", found[name]
    assert int(found["external:front"]["position"]["sequence"]) > 0
    assert found["declared:batch"]["position"] == {"position": "42"}
    order = [line for line in machine.run(f"cat {log}").stdout.splitlines() if "position" not in line]
    assert order == [
        *("10-one.sh freeze", "20-two.sh freeze", "vm.sh freeze", "azure-pre x", "declared hold"),
        *("declared release", "azure-post", "vm.sh thaw", "20-two.sh thaw", "10-one.sh thaw"),
    ]
    calls = machine.run("cat /run/front.log").stdout.splitlines()
    assert any("post_checkpoint" in line or "post-checkpoint" in line for line in calls), calls

    # One that fails, one that dies while held, one that lies; each is heard of, and the rest is let go.
    write_file(machine, "/etc/qemu/fsfreeze-hook.d/20-two.sh", script + '[ "$1" != freeze ] || exit 3\n', "755")
    message = quiesce.fails("checkpoint", machine.name, "--window", "20", code=6)
    assert "fsfreeze-hook:20-two.sh" in message
    assert "ended with 3" in message
    with pytest.raises(subprocess.CalledProcessError) as raised:  # virsh is told as well: the stock hook would not
        virsh_quiesced(machine)
    assert b"hook" in raised.value.stderr
    machine.run("rm /etc/qemu/fsfreeze-hook.d/20-two.sh")
    machine.spawn(f"{PROGRAMS} --name mortal --die release")
    wait_for_writers(machine, quiesce, "external:mortal")
    message = quiesce.fails("checkpoint", machine.name, "--window", "20", code=6)
    assert "external:mortal" in message
    assert "went away" in quiesce.fails("checkpoint", machine.name, "--window", "20", code=6)  # it is still missed
    write_file(machine, "/etc/quiesce/writers.d/mortal.conf", "[Match]\nWriter=external:mortal\nRequired=no\n")
    node = quiesce("checkpoint", machine.name, "--name", "without", "--window", "40", timeout=200)
    assert node["consistency"] == "application"
    mortal = next(item for item in node["writers"] if item["id"] == "external:mortal")
    assert (mortal["grade"], mortal["required"]) == ("crash", False)
    machine.run("chmod 666 /etc/quiesce/writers.d/mortal.conf")
    assert "can be written by others than root" in quiesce.fails("checkpoint", machine.name, code=6)


@pytest.mark.timeout(300)
def test_a_platform_that_never_thaws(server: Machine) -> None:
    """qemu-guest-agent has frozen everything and nobody thaws it: at our deadline the guest and all applications run again."""
    hook = "/usr/bin/python3 -I -S /usr/local/lib/quiesce/quiesce-agent.pyz --hook"
    server.run('sed -i \'s/--hook "$1"/--hook "$1" --window 8/\' /usr/local/lib/quiesce/fsfreeze-hook')
    subprocess.run(["virsh", "-q", "domfsfreeze", server.name], check=True, timeout=100, capture_output=True)
    frozen = time.monotonic()
    time.sleep(9)
    with talking(server) as requester:
        requester.status(TIMEOUT)
    subprocess.run(["virsh", "-q", "domfsthaw", server.name], check=False, timeout=100, capture_output=True)
    server.wait_for_guest()
    assert server.run("touch /root/writes; sync; echo yes", timeout=20).stdout.strip() == "yes"
    print(f"{time.monotonic() - frozen:.1f} s after the freeze")
    load = Load(server, workloads.ALL_BUT_RABBITMQ)
    for workload in (workloads.WEB, workloads.SLAPD, workloads.PGBOUNCER):
        assert load.writes_once(workload, 30), workload.name
    assert server.run(f"{hook} thaw", check=False).returncode == 1


def wait_for_writers(machine: Machine, quiesce: Quiesce, *names: str) -> None:
    def known() -> bool:
        return set(names) <= {item["id"] for item in quiesce("writers", machine.name)["writers"]}

    wait_for(known, 60, every_s=1)


def virsh_quiesced(machine: Machine) -> Any:
    words = ["snapshot-create-as", machine.name, "--name", "theirs", "--disk-only", "--quiesce", "--no-metadata", "--atomic"]
    return subprocess.run(["virsh", "-q", "-c", "qemu:///system", *words], check=True, capture_output=True, timeout=200)
