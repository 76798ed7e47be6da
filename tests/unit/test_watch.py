"""server/watch.py and hypervisor/events.py: what is done about VMs that start or stop. libvirt is its own mock driver."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import libvirt
import pytest

from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.disks.merges import Waiting
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.domain_xml import Channel
from quiesce.hypervisor.events import LifecycleEvents, PowerChange
from quiesce.hypervisor.vm import Facts, PowerState, Vm
from quiesce.model.errors import AgentError, BusyError, HypervisorError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.keys import VmKey
from quiesce.model.settings import Settings, Type
from quiesce.model.tree import Kind
from quiesce.operations.delete import Deleted
from quiesce.server import watch as module
from quiesce.server.said import Said, Severity
from quiesce.server.watch import Decision, next_step, outlived, watch
from quiesce.wire.messages import PORT_NAME
from tests.samples import node

URI = "test:///default"
"""One VM, `test`, which all connections of this process share."""


def facts(power: PowerState = PowerState.RUNNING, port: bool | None = None) -> Facts:
    """`port`: whether an agent listens on it; None: there is no port."""
    channels = {} if port is None else {PORT_NAME: Channel(PORT_NAME, port)}
    return Facts("web1", "uuid-1", power, True, (), channels, (), {}, 0, None, False)


CRASH = Settings(require=Consistency.CRASH)
STANDARD = Settings(type=Type.STANDARD)


@pytest.mark.parametrize(
    ("found", "settings", "step"),
    [
        (facts(port=True), Settings(), Decision.TAKE),
        (facts(port=False), Settings(), Decision.WAIT),
        (facts(port=None), Settings(), Decision.WAIT),
        (facts(port=None), Settings(require=Consistency.FILESYSTEM), Decision.WAIT),
        (facts(port=None), CRASH, Decision.TAKE),
        (facts(port=False), CRASH, Decision.WAIT),
        (facts(port=None), STANDARD, Decision.TAKE),
        (facts(PowerState.PAUSED, port=True), Settings(), Decision.WAIT),
        (facts(PowerState.PAUSED), CRASH, Decision.TAKE),
        (facts(PowerState.PAUSED), replace(STANDARD, require=Consistency.CRASH), Decision.WAIT),
        (facts(PowerState.OTHER, port=True), CRASH, Decision.WAIT),
        (facts(PowerState.OFF), Settings(), Decision.GIVE_UP),
        (facts(PowerState.OFF), CRASH, Decision.GIVE_UP),
    ],
)
def test_when_a_checkpoint_of_a_vm_that_started_can_be_had(found, settings, step):
    """Broken: a guest that boots would be checkpointed too early or never, or one without an agent be waited for."""
    assert next_step(found, settings) is step


def test_what_is_wanted():
    """Broken: somebody who forbade checkpoints would get one."""
    assert Settings(automatic=True).wants_automatic
    assert not Settings().wants_automatic
    assert not Settings(automatic=True, type=Type.DISABLED).wants_automatic


def test_only_automatic_checkpoints_of_the_run_that_ended_are_removed():
    """Broken: a checkpoint of the next run, or one that somebody took, would be deleted."""
    end = datetime(2026, 1, 1, 12, tzinfo=UTC)
    before, after = (end + timedelta(seconds=seconds) for seconds in (-1, 1))
    assert outlived(node("a", kind=Kind.AUTOMATIC, created=before.isoformat()), end)
    assert not outlived(node("a", kind=Kind.AUTOMATIC, created=after.isoformat()), end)
    for kind in set(Kind) - {Kind.AUTOMATIC}:
        assert not outlived(node("a", kind=kind, created=before.isoformat()), end)


class Log:
    """What the service says."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self._changed = threading.Condition()

    def __call__(self, said: Said) -> None:
        with self._changed:
            self.said.append(said)
            self._changed.notify_all()

    def wait_for(self, text: str, times: int = 1) -> Said:
        def found() -> list[Said]:
            return [said for said in self.said if text in said.text]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= times, timeout=20), self.said
            return found()[-1]


class Service:
    """`watch` in a thread, on libvirt's mock host; checkpoints are taken and deleted by what the test puts in their place."""

    def __init__(self, catalog: Catalog) -> None:
        host = Host(URI, catalog.hosts.identify)
        self.domain = host.domain("test")
        self.key = VmKey(host.id, str(self.domain.UUIDString()))
        self.catalog = catalog
        self.log = Log()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        catalog.settings.put(self.key, CRASH_AUTOMATIC)

    def _watch(self) -> None:
        watch(Context(URI, self.catalog, lambda _: None), self.stop, self.log)

    def start(self) -> None:
        self.thread.start()
        self.log.wait_for("watching the VMs")

    def end(self) -> None:
        self.stop.set()
        if self.thread.ident:
            self.thread.join(20)
            assert not self.thread.is_alive()
        if not self.domain.isActive():
            self.domain.create()

    def has(self, key: str, **others: Any) -> None:
        values = {"kind": Kind.AUTOMATIC, "host": self.key.host, "vm_uuid": self.key.uuid, **others}
        self.catalog.checkpoints.add(node(key, **values), "<domain/>", head_parent=key)


CRASH_AUTOMATIC = replace(CRASH, automatic=True)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    monkeypatch.setattr(module, "RECONNECT_S", 0.02)
    monkeypatch.setattr(Vm, "facts", lambda vm: facts(PowerState.RUNNING if vm.active() else PowerState.OFF))
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    service = Service(catalog)
    yield service
    service.end()
    catalog.close()


@pytest.fixture
def takes(service: Service, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Has checkpoints fail with these errors in turn, and then be taken; the list of those tried."""

    def arrange(*errors: Exception) -> list[str]:
        tried: list[str] = []

        def checkpoint(context: Context, vm: str, *, name: str, automatic: bool) -> Any:
            assert automatic
            assert vm == service.key.uuid
            tried.append(name)
            if len(tried) <= len(errors):
                raise errors[len(tried) - 1]
            context.emit(Warned("be careful"))
            service.has(name)
            return node(name)

        monkeypatch.setattr(module, "checkpoint", checkpoint)
        return tried

    return arrange


def test_events_of_a_vm(service: Service) -> None:
    """Broken: starts or shutdowns would be missed, or a VM that was powered off be taken for one that was shut down."""
    events = LifecycleEvents(URI)
    (present,) = events.present()
    assert (present.name, present.change) == ("test", PowerChange.STARTED)
    service.domain.shutdown()
    (present,) = events.present()
    assert present.change is PowerChange.SHUT_DOWN
    service.domain.create()
    service.domain.destroy()
    assert events.present() == []
    service.domain.create()
    service.domain.suspend()
    service.domain.resume()
    found = [events.next(5) for _ in range(3)]
    assert [event and event.change for event in found] == [PowerChange.SHUT_DOWN, PowerChange.STARTED, PowerChange.STARTED]
    assert all(event and (event.name, event.uuid) == ("test", service.key.uuid) for event in found)
    assert events.next(0.05) is None
    events.close()


def test_helpers_of_merges_are_no_vms(service: Service) -> None:
    """Broken: each merge would be looked at as a VM that starts."""
    events = LifecycleEvents(URI)
    connection = libvirt.open(URI)
    xml = "<domain type='test'><name>quiesce-merge-1</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    helper = connection.createXML(xml)
    assert [event.name for event in events.present()] == ["test"]
    helper.destroy()
    connection.close()
    assert events.next(0.2) is None
    events.close()


def test_a_lost_connection_is_told_each_time(service: Service) -> None:
    """Broken: the service would wait for events that never come."""
    events = LifecycleEvents(URI)
    events._on_close(None, 0, None)
    for _ in range(2):
        with pytest.raises(HypervisorError, match="lost"):
            events.next(1)
    events.close()


def test_an_attempt_is_made_again_until_it_succeeds(service: Service, takes: Callable[..., list[str]]) -> None:
    """Broken: a guest whose database is just starting would have no checkpoint."""
    tried = takes(AgentError("the agent hung up"), AgentError("the agent hung up"), BusyError("another operation"))
    service.start()
    said = service.log.wait_for("was taken")
    assert said == Said(Severity.INFO, f"test: {tried[-1]!r} was taken: application-consistent")
    assert len(tried) == 4
    texts = [said.text for said in service.log.said]
    assert texts.count("test: not yet: the agent hung up") == 1
    assert Said(Severity.WARNING, "test: be careful") in service.log.said


def test_patience_ends(service: Service, takes: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a guest without an agent would be asked for ever, with nobody told what to do about it."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    service.catalog.settings.put(service.key, Settings(automatic=True))
    tried = takes(*[AgentError("test has no quiesce agent", hint="quiesce guest install test")] * 99)
    service.start()
    said = service.log.wait_for("guest install")
    assert said == Said(Severity.ERROR, "test: test has no quiesce agent (quiesce guest install test)")
    assert len(tried) == 1  # while there is no agent, nothing is tried
    service.domain.destroy()
    service.domain.create()
    service.log.wait_for("guest install", times=2)


@pytest.mark.parametrize("error", [RefusedError("its disks are raw"), ZeroDivisionError("a defect")])
def test_what_cannot_be_is_tried_once_and_the_service_goes_on(
    service: Service, takes: Callable[..., list[str]], error: Exception
) -> None:
    """Broken: one VM, or a defect of ours, would leave all VMs without checkpoints."""
    tried = takes(error)
    service.start()
    assert service.log.wait_for(str(error)).severity is Severity.ERROR
    assert len(tried) == 1
    service.domain.destroy()
    service.domain.create()
    service.log.wait_for("was taken")


def test_a_vm_that_has_one_gets_no_other(service: Service, takes: Callable[..., list[str]]) -> None:
    """Broken: checkpoints would pile up with every start."""
    tried = takes()
    service.has("mine", kind=Kind.PRODUCTION)
    service.start()
    service.domain.destroy()
    service.domain.create()
    service.end()
    assert tried == []


def test_only_what_is_automatic_is_deleted(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: somebody's own checkpoints would be deleted, or a deletion be given up because another operation is under way."""
    asked: list[list[str]] = []

    def delete(context: Context, references: Any) -> Deleted:
        asked.append([reference.checkpoint for reference in references])
        if len(asked) == 1:
            raise BusyError("another operation is under way")
        service.catalog.checkpoints.remove(service.catalog.checkpoints.tree(service.key).find("old"), None)
        return Deleted((node("old", name="automatic old"),), (Waiting("now", "test runs"),))

    monkeypatch.setattr(module, "delete", delete)
    service.has("mine", kind=Kind.PRODUCTION)
    service.has("old")
    service.start()
    service.domain.shutdown()
    service.log.wait_for("not yet: another operation")
    service.log.wait_for("'automatic old' was removed")
    service.log.wait_for("not merged yet: now: test runs")
    assert asked == [["old"], ["old"]]


def test_a_merge_is_left_when_the_service_ends(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: the service would end only with a merge that may take hours, or be killed in its midst."""
    merging = threading.Event()

    def delete(context: Context, references: Any) -> Any:
        while True:
            merging.set()
            context.progress("merge")(0, 1)

    monkeypatch.setattr(module, "delete", delete)
    service.has("old")
    service.start()
    service.domain.shutdown()
    assert merging.wait(10)
    service.end()
    assert service.log.said[-1] == Said(Severity.INFO, "test: the merge was interrupted; the next deletion goes on with it")


def test_work_that_does_not_end_does_not_keep_the_service(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: systemd would kill a service that did not say what it left."""
    monkeypatch.setattr(module, "STOP_TIMEOUT_S", 0.2)
    release, begun = threading.Event(), threading.Event()

    def checkpoint(*_: Any, **__: Any) -> Any:
        begun.set()
        release.wait(20)
        raise RefusedError("too late")

    monkeypatch.setattr(module, "checkpoint", checkpoint)
    service.start()
    assert begun.wait(10)
    service.end()
    assert service.log.said[-1].text == "test: its checkpoint was interrupted; the VM's next operation recovers it"
    release.set()
    service.log.wait_for("too late")


def test_a_vm_that_is_waited_for_keeps_no_other_waiting(service: Service, takes: Callable[..., list[str]]) -> None:
    """Broken: one guest that does not boot would leave all that start after it without checkpoints for ten minutes."""
    takes()
    service.catalog.settings.put(service.key, Settings(automatic=True))
    connection = libvirt.open(URI)
    xml = "<domain type='test'><name>other</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    other = connection.defineXML(xml)
    service.catalog.settings.put(VmKey(service.key.host, other.UUIDString()), CRASH_AUTOMATIC)
    service.start()
    service.log.wait_for("test: waiting for its guest")
    other.create()
    assert service.log.wait_for("other: ").severity is Severity.ERROR  # the fake takes only the first VM's
    other.destroy()
    other.undefine()
    connection.close()


def test_a_libvirt_that_is_not_there_is_said_once_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: the service would end when the host boots and libvirt is not up yet, or fill the journal."""
    monkeypatch.setattr(module, "RECONNECT_S", 0.01)
    catalog, log, stop = Catalog(f"sqlite:///{tmp_path}/catalog.db"), Log(), threading.Event()
    tries: list[str] = []

    def connect(uri: str, _register: Any) -> LifecycleEvents:
        tries.append(uri)
        if len(tries) == 5:
            stop.set()
        raise HypervisorError("cannot connect")

    monkeypatch.setattr(module, "LifecycleEvents", connect)
    watch(Context(URI, catalog, lambda _: None), stop, log)
    catalog.close()
    assert [said.text for said in log.said] == ["cannot connect; trying again every 0.01 s"]
    assert len(tries) == 5


def test_a_catalog_that_cannot_be_opened_ends_it(tmp_path: Path) -> None:
    """Broken: a service that can do nothing would seem to run."""
    command = [Path(sys.executable).with_name("quiesce"), "watch", "--catalog", tmp_path]
    finished = subprocess.run(command, env={"JOURNAL_STREAM": "8:1"}, capture_output=True, text=True, timeout=30, check=False)
    assert finished.returncode == 1
    assert finished.stderr.startswith("<3>cannot open the catalog")
