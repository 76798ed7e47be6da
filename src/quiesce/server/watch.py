"""Takes automatic checkpoints when VMs start, and removes them when their guests have shut them down."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum

from quiesce.context import Context
from quiesce.hypervisor.events import Lifecycle, LifecycleEvents, PowerChange
from quiesce.hypervisor.vm import Facts, PowerState
from quiesce.model.errors import AgentError, BusyError, CancelledError, ConsistencyError, HypervisorError, QuiesceError
from quiesce.model.events import Event, Warned
from quiesce.model.grades import Consistency
from quiesce.model.keys import VmKey
from quiesce.model.names import CheckpointReference, automatic_name
from quiesce.model.settings import Settings, Type
from quiesce.model.tree import Checkpoint, Kind, Tree
from quiesce.operations.checkpoint import checkpoint
from quiesce.operations.delete import delete
from quiesce.wire.messages import PORT_NAME

PATIENCE_S = 600.0
"""How long a VM is waited for that cannot be checkpointed, or whose checkpoints cannot be deleted, just now."""
POLL_S = 1.0
"""Between two looks at whether the agent of a guest that boots is there."""
RETRY_S = 15.0
"""Between two attempts."""
RECONNECT_S = 5.0
STOP_TIMEOUT_S = 60.0
"""Longest that the end waits for checkpoints under way. What it leaves is killed, and mended by the VM's next operation."""


class Severity(Enum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Said:
    """Something an administrator may want to read later."""

    severity: Severity
    text: str


Say = Callable[[Said], None]
"""Called from any thread."""


class Decision(Enum):
    """What to do about a VM that was started."""

    TAKE = "take"
    WAIT = "wait"
    GIVE_UP = "give up"


def next_step(facts: Facts, settings: Settings) -> Decision:
    """Whether a checkpoint can be had of a VM that was started. A guest without the agent's port, which could only be switched
    as it is, need not be waited for if that is enough."""
    crash_will_do = settings.require is Consistency.CRASH and settings.type is Type.PRODUCTION
    if facts.power is PowerState.OFF:
        return Decision.GIVE_UP
    if facts.power is not PowerState.RUNNING and not (facts.power is PowerState.PAUSED and crash_will_do):
        return Decision.WAIT
    if settings.type is Type.STANDARD:
        return Decision.TAKE
    port = facts.channels.get(PORT_NAME)
    ready = port.connected if port else crash_will_do
    return Decision.TAKE if ready else Decision.WAIT


def outlived(node: Checkpoint, shut_down: datetime) -> bool:
    """An automatic checkpoint of the run that ended then, or an earlier one; not of the next, which may have begun."""
    return node.kind is Kind.AUTOMATIC and datetime.fromisoformat(node.created) < shut_down


def watch(context: Context, stop: threading.Event, say: Say) -> None:
    """Serves until `stop` is set, whatever fails, libvirt included; failures are said, and the VM is tried again when it starts
    or shuts down next, or when libvirt is found again.

    When libvirt is found, each VM that runs counts as just started, and each that is off as just shut down if its guest did
    it, so that nothing is missed that happened before. A merge under way when `stop` is set is left to the next deletion.
    """
    service = _Service(context, stop, say)
    failure = ""
    try:
        while not stop.is_set():
            try:
                with closing(LifecycleEvents(context.uri, context.catalog.hosts.identify)) as events:
                    say(Said(Severity.INFO, f"watching the VMs of {events.host_name}"))
                    failure = ""
                    service.listen(events)
            except HypervisorError as error:
                if error.message != failure:
                    say(Said(Severity.ERROR, f"{error.message}; trying again every {RECONNECT_S:g} s"))
                failure = error.message
                stop.wait(RECONNECT_S)
    finally:
        stop.set()
        service.end()


class _Service:
    """One thread a VM for as long as there is something to do for it, which takes its changes in order: a VM that is waited
    for, or whose images are merged, keeps no other waiting."""

    def __init__(self, context: Context, stop: threading.Event, say: Say) -> None:
        self._context = context
        self._stop = stop
        self._say = say
        self._lock = threading.Lock()
        self._todo: dict[str, deque[Lifecycle]] = {}
        self._workers: set[threading.Thread] = set()
        self._window = threading.Lock()

    def listen(self, events: LifecycleEvents) -> None:
        """Returns when the service is to end. Raises HypervisorError when the connection is lost."""
        for event in events.present():
            self._put(events.host_id, event)
        while not self._stop.is_set():
            if heard := events.next(POLL_S):
                self._put(events.host_id, heard)

    def end(self) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                self._say(Said(Severity.WARNING, f"{worker.name}: left in the middle; its next operation mends it"))

    def _put(self, host: str, event: Lifecycle) -> None:
        with self._lock:
            if event.uuid in self._todo:
                self._todo[event.uuid].append(event)
                return
            self._todo[event.uuid] = deque([event])
            worker = threading.Thread(target=self._work, args=(host, event.uuid), name=event.name, daemon=True)
            self._workers.add(worker)
            worker.start()

    def _work(self, host: str, uuid: str) -> None:
        while event := self._next(uuid):
            _Handler(self._context, host, event, self._stop, self._say, self._window).handle()

    def _next(self, uuid: str) -> Lifecycle | None:
        with self._lock:
            if self._todo[uuid] and not self._stop.is_set():
                return self._todo[uuid].popleft()
            del self._todo[uuid]
            self._workers.discard(threading.current_thread())
            return None


class _Handler:
    """What is done about one change of one VM. `window`: held for each checkpoint, as windows of one process would lengthen
    each other."""

    def __init__(
        self,
        context: Context,
        host: str,
        event: Lifecycle,
        stop: threading.Event,
        say: Say,
        window: threading.Lock,
    ) -> None:
        self._context = replace(context, emit=self._emit, cancelled=self._cancelled)
        self._host = host
        self._event = event
        self._stop = stop
        self._say = say
        self._window = window
        self._noted = ""

    def handle(self) -> None:
        """Raises nothing: what fails is said."""
        try:
            if not self._settings().automatic:
                return
            if self._event.change is PowerChange.STARTED:
                with self._context.vm(self._event.uuid) as vm:
                    self._patiently(lambda last: self._take(vm.facts(), last))
            else:
                self._patiently(lambda _: self._remove())
        except CancelledError:
            self._said(Severity.INFO, "interrupted; the next deletion goes on with it")
        except QuiesceError as error:
            self._said(Severity.ERROR, f"{error.message} ({error.hint})" if error.hint else error.message)
        except Exception:  # noqa: BLE001 - a defect of ours must not leave the other VMs without their checkpoints
            self._said(Severity.ERROR, traceback.format_exc())

    def _patiently(self, attempt: Callable[[bool], float]) -> None:
        """Calls `attempt`, which is told whether it is the last time, until it returns 0 and not the seconds to wait."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            last = time.monotonic() >= deadline
            try:
                pause = attempt(last)
            except (AgentError, BusyError, ConsistencyError) as error:
                if last:
                    raise
                self._note(f"not yet: {error.message}")
                pause = RETRY_S
            if not pause or self._stop.wait(pause):
                return

    def _take(self, facts: Facts, last: bool) -> float:
        settings = self._settings()
        if not settings.wants_automatic or self._tree().checkpoints:
            return 0
        step = next_step(facts, settings)
        if step is Decision.WAIT and not last:
            self._note("waiting for its guest")
            return POLL_S
        if step is Decision.GIVE_UP:
            return 0
        with self._window:
            if not self._stop.is_set():
                node = checkpoint(self._context, self._event.uuid, name=automatic_name(datetime.now(UTC)), automatic=True)
                self._said(Severity.INFO, f"{node.name!r} was taken: {node.consistency.value}-consistent")
        return 0

    def _remove(self) -> float:
        found = [node for node in self._tree().checkpoints if outlived(node, self._event.at)]
        if found:
            result = delete(self._context, [CheckpointReference(self._event.uuid, node.id) for node in found])
            for node in result.checkpoints:
                self._said(Severity.INFO, f"{node.name!r} was removed")
            for item in result.waiting:
                self._said(Severity.INFO, f"not merged yet: {item.name}: {item.reason}")
        return 0

    def _settings(self) -> Settings:
        return self._context.catalog.settings.get(VmKey(self._host, self._event.uuid))

    def _tree(self) -> Tree:
        return self._context.catalog.checkpoints.tree(VmKey(self._host, self._event.uuid))

    def _emit(self, event: Event) -> None:
        if isinstance(event, Warned):
            self._said(Severity.WARNING, event.message)

    def _cancelled(self) -> bool:
        """A merge may take hours, and can be interrupted anywhere; a checkpoint under way is waited for."""
        return self._event.change is PowerChange.SHUT_DOWN and self._stop.is_set()

    def _note(self, text: str) -> None:
        """Says it unless it was the last thing noted."""
        if text != self._noted:
            self._said(Severity.INFO, text)
        self._noted = text

    def _said(self, severity: Severity, text: str) -> None:
        self._say(Said(severity, f"{self._event.name}: {text}"))
