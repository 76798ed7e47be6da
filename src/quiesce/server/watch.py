"""Takes an automatic checkpoint when a VM starts, and removes it when the VM's guest has shut down. Meanwhile has checkpoints
booted aside (server/proving.py)."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
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
from quiesce.server.proving import Prover
from quiesce.server.said import Said, Say, Severity
from quiesce.wire.messages import PORT_NAME

PATIENCE_S = 600.0
"""How long the service tries, if a VM cannot be checkpointed now, or its checkpoints cannot be deleted now; in seconds."""
POLL_S = 1.0
"""Seconds between two looks whether the agent of a booting guest answers."""
RETRY_S = 15.0
"""Seconds between two attempts."""
RECONNECT_S = 5.0
"""Seconds between two attempts to reach libvirt."""
STOP_TIMEOUT_S = 60.0
"""Longest wait for running checkpoints when the service stops, in seconds. Then they are killed, and the VM's next operation
recovers them."""


class Decision(Enum):
    """What to do next for a VM that was started."""

    TAKE = "take"
    WAIT = "wait"
    GIVE_UP = "give up"


def next_step(facts: Facts, settings: Settings) -> Decision:
    """Whether a VM that was started can be checkpointed now. If the settings accept a crash-consistent checkpoint and the VM
    has no port for the agent, there is no reason to wait."""
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
    """Whether this is an automatic checkpoint from before this shutdown. The VM may have been started again since; a checkpoint
    of that next run is kept."""
    return node.kind is Kind.AUTOMATIC and datetime.fromisoformat(node.created) < shut_down


def watch(context: Context, stop: threading.Event, say: Say) -> None:
    """Serves until `stop` is set. Goes on after every failure, also if libvirt is gone, and logs it. After a failure, a VM's
    turn comes again when it next starts or shuts down, or when libvirt can be reached again.

    When libvirt can be reached (again), each running VM counts as just started, and each VM that its guest shut down counts as
    just shut down, so no earlier change is missed. When `stop` is set, a running merge is left to the next deletion.
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
    """Has one thread for each VM with something to do. The thread handles the VM's changes in order, so no VM waits for another
    one that still boots or whose images are merged."""

    def __init__(self, context: Context, stop: threading.Event, say: Say) -> None:
        self._context = context
        self._stop = stop
        self._say = say
        self._lock = threading.Lock()
        self._todo: dict[str, deque[Lifecycle]] = {}
        self._workers: set[threading.Thread] = set()
        self._window = threading.Lock()
        self._prover = Prover(context, stop, say)

    def listen(self, events: LifecycleEvents) -> None:
        """Handles events until `stop` is set. Raises HypervisorError when the connection is lost."""
        self._prover.begin(events.host_id)
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
                text = f"{worker.name}: its checkpoint was interrupted; the VM's next operation recovers it"
                self._say(Said(Severity.WARNING, text))
        self._prover.end(max(0.0, deadline - time.monotonic()))

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
    """Handles one change of one VM. `window`: a lock for all checkpoints of this process, because windows at the same time
    would lengthen each other."""

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
        """Handles the change. Never raises: logs failures."""
        try:
            if not self._settings().automatic:
                return
            if self._event.change is PowerChange.STARTED:
                with self._context.vm(self._event.uuid) as vm:
                    self._patiently(lambda last: self._take(vm.facts(), last))
            else:
                self._patiently(lambda _: self._remove())
        except CancelledError:
            self._said(Severity.INFO, "the merge was interrupted; the next deletion goes on with it")
        except QuiesceError as error:
            self._said(Severity.ERROR, f"{error.message} ({error.hint})" if error.hint else error.message)
        except Exception:  # noqa: BLE001 - a defect of quiesce must not leave the other VMs without checkpoints
            self._said(Severity.ERROR, traceback.format_exc())

    def _patiently(self, attempt: Callable[[bool], float]) -> None:
        """Calls `attempt` until it returns 0. Any other value is the time to wait until the next call, in seconds. The argument
        tells `attempt` whether this is the last call."""
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
        """Whether to cancel the operation: a merge, which may take hours and can be interrupted anywhere. `end` waits for a
        running checkpoint."""
        return self._event.change is PowerChange.SHUT_DOWN and self._stop.is_set()

    def _note(self, text: str) -> None:
        """Logs the text unless it is the one that was noted last."""
        if text != self._noted:
            self._said(Severity.INFO, text)
        self._noted = text

    def _said(self, severity: Severity, text: str) -> None:
        self._say(Said(severity, f"{self._event.name}: {text}"))
