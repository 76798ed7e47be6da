"""Copies of checkpoints: made, booted aside, asked, and removed.

A copy runs on overlays of the checkpoint's images, in a directory of its own in the checkpoint's place (disks/places.py). It is
a transient VM that ends with this process's connection to libvirt (hypervisor/trial.py says what it has). The VM is locked
while the copy is made, and not while it runs: checkpoints and restores go on. Merges of images that the copy reads wait, as for
any VM that reads them."""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from quiesce.applications.proof import judge_starts
from quiesce.catalog import lock
from quiesce.catalog.journal import Journal
from quiesce.catalog.steps import BootCopy, MakeFile, MakePlace
from quiesce.context import Context
from quiesce.disks import machine_files, places
from quiesce.disks.survey import survey
from quiesce.guests.port import IDENTIFY_TIMEOUT_S
from quiesce.hypervisor import domain_xml, trial
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.domain_xml import Identity
from quiesce.hypervisor.trial import Trial, TrialFiles
from quiesce.hypervisor.vm import PowerState, Vm
from quiesce.local.hub import Hub
from quiesce.model.errors import BusyError, CancelledError, NotFoundError, QuiesceError, RefusedError, UsageError
from quiesce.model.events import Warned
from quiesce.model.fingerprints import lowered
from quiesce.model.keys import VmKey
from quiesce.model.names import TRIAL_PREFIX, CheckpointReference
from quiesce.model.proof import Proof, ProofState, summary, worst
from quiesce.model.tree import Checkpoint, Role
from quiesce.recovery import journalled_with, operating
from quiesce.repair.trials import clear_all, undo_trial
from quiesce.storage.port import MIN_FREE, Storage, require_room
from quiesce.wire.messages import PORT_NAME, Verified

DEFAULT_TIMEOUT_S = 900.0
MAX_TIMEOUT_S = 3600.0
"""Longest that an agent works at one request, in seconds."""
ROOM = 1024**3
"""Bytes that must be free where the overlays are: the copy writes logs, and what its applications recover."""
LEAST_ANSWER_S = 30.0
"""So much time the guest gets to answer, in seconds, however late it came up."""
LATE_S = 30.0
"""Longest wait for an application that starts after systemd has started everything, in seconds."""
POLL_S = 0.5
CANCELLED = "the verification was cancelled"
CONSOLE_LINES, CONSOLE_LINE = 12, 300
MAX_CONSOLE = 64 * 1024**2


@dataclass(frozen=True)
class Copy:
    """A copy of a checkpoint. It is paused until it is asked."""

    node: Checkpoint
    """With the label that its images are worth now."""
    identity: Identity
    place: str
    files: TrialFiles
    trial: Trial
    sizes: Mapping[str, int]
    """Virtual size of each disk, in bytes, by target."""


@dataclass(frozen=True)
class Share:
    """What a copy may have of the host."""

    memory: int | None = None
    """The most memory, in bytes; None: as much as the VM has."""
    taken: int = 0
    """The memory of other copies that are made, and do not run yet, in bytes."""
    network: Hub | None = None
    """The network that it has cards on; None: it has none."""
    hint: str = "give it less: --memory MIB"
    """What to do if the host has too little memory."""


def require_sensible(timeout_s: float) -> None:
    """Raises UsageError."""
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise UsageError(f"--timeout takes up to {MAX_TIMEOUT_S:g} s")


@contextmanager
def turn(context: Context, what: str, at_once: int = 1) -> Iterator[Host]:
    """A connection to the host, when fewer than `at_once` copies run there; copies end with it. Removes what killed commands
    left of theirs. Raises BusyError after lock.PATIENCE_S."""
    with context.host() as host, _turn(context, host, what, at_once):
        for done in clear_all(context, host):
            context.emit(Warned(done))
        yield host


@contextmanager
def copied(context: Context, host: Host, reference: CheckpointReference, share: Share) -> Iterator[Copy]:
    """The copy, paused, during the block. Nothing is left of it afterwards. Raises NotFoundError, RefusedError, NoSpaceError,
    BusyError."""
    with _journal_of_copy(context, host, f"quiesce verify {reference.vm}@{reference.checkpoint}") as (identity, journal):
        with operating(context, reference.vm, "verify") as vm:
            with context.phase("plan"):
                copy = _plan(context, vm, reference.checkpoint, identity, share)
            journal.intend(BootCopy(vm.uuid, copy.node.id))
            with context.phase("make the copy"):
                _make(context, host, journal, copy, overlays=True)
                if share.network:
                    share.network.join()
        yield copy


@contextmanager
def copied_onto(
    context: Context, host: Host, vm: Vm, node: Checkpoint, share: Share, overlays: Mapping[str, str]
) -> Iterator[Copy]:
    """Like `copied`, under the VM's lock. The copy writes to these overlays, path by target, which are there, are the caller's,
    and are left as the copy leaves them."""
    with _journal_of_copy(context, host, f"quiesce settle {vm.name}@{node.name}") as (identity, journal):
        with context.phase("make the copy"):
            copy = _plan(context, vm, node.id, identity, share, overlays)
            journal.intend(BootCopy(vm.uuid, node.id))
            _make(context, host, journal, copy, overlays=False)
        yield copy


@contextmanager
def _journal_of_copy(context: Context, host: Host, what: str) -> Iterator[tuple[Identity, Journal]]:
    """A new copy's name, and its operation in the journal, which is undone at the end of the block."""
    identity = Identity(TRIAL_PREFIX + secrets.token_hex(4), str(uuid.uuid4()))
    key = VmKey(host.id, identity.uuid)
    undo = partial(undo_trial, context, host, identity.uuid)
    with context.locked_key(key, what), journalled_with(context, key, "verify", undo) as journal:
        yield identity, journal
        with context.phase("remove the copy"):
            undo(journal.read())


def _plan(
    context: Context,
    vm: Vm,
    checkpoint: str,
    identity: Identity,
    share: Share,
    overlays: Mapping[str, str] | None = None,
) -> Copy:
    """Raises RefusedError if a file of the checkpoint is gone, NoSpaceError, and RefusedError if the host lacks memory."""
    found = survey(context, vm)
    node = found.tree.find(checkpoint)
    if missing := found.missing(node):
        raise RefusedError(
            f"checkpoint {node.name!r} cannot be booted: {', '.join(missing)} is gone", hint=f"quiesce doctor {vm.name}"
        )
    if changed := found.changed_for(disk.path for disk in node.disks):
        for text in changed.values():
            context.emit(Warned(f"{node.name!r} is tried as crash-consistent: {text}"))
        node = lowered(node, changed)
    storage = context.storage(vm.host)
    above = places.of_checkpoint(storage, node)
    require_room(storage, above, ROOM, "a copy that is booted")
    place = storage.place(storage.inside(storage.inside(above, identity.name), "-"))
    disks = overlays or {disk.target: storage.inside(place, f"{disk.target}.qcow2") for disk in node.disks}
    files = TrialFiles(disks, storage.inside(place, "nvram.fd"), storage.inside(place, "console.log"))
    xml = context.catalog.checkpoints.domain_xml(node.id)
    made = trial.trial(
        xml,
        identity=identity,
        generation=str(uuid.uuid4()),
        files=files,
        port=trial.port_for(xml, PORT_NAME),
        memory_limit=share.memory,
        plug=share.network.plug if share.network else None,
        lasting=overlays is not None,
    )
    if made.memory > (free := max(0, vm.host.available_memory() - share.taken)):
        raise RefusedError(
            f"{vm.host.name} has {free >> 20} MiB of memory free, and the copy of {vm.name} would take {made.memory >> 20}",
            hint=share.hint,
        )
    return Copy(node, identity, place, files, made, {disk.target: found.images[disk.path].capacity for disk in node.disks})


def _make(context: Context, host: Host, journal: Journal, copy: Copy, *, overlays: bool) -> None:
    """The copy, paused. The VM is locked: nobody merges an image before libvirt knows that the copy reads it."""
    storage = context.storage(host)
    journal.intend(MakePlace(copy.place))
    journal.intend(MakeFile(copy.files.console))  # made by libvirt
    storage.contents(copy.place, make=True)
    for disk in copy.node.disks if overlays else ():
        path = copy.files.disks[disk.target]
        with journal.step(MakeFile(path)):
            storage.make_overlay(path, copy.sizes[disk.target], disk.path, disk.format)
    if domain_xml.nvram(copy.trial.xml):
        journal.intend(MakeFile(copy.files.nvram))
        if nvram := copy.node.file(Role.NVRAM):
            machine_files.copy(storage, nvram.path, copy.files.nvram)
    _put_tpm(host, storage, journal, copy)
    host.start_copy(copy.trial.xml)


def _put_tpm(host: Host, storage: Storage, journal: Journal, copy: Copy) -> None:
    state = host.tpm_state(copy.trial.xml)
    if state is None:
        return
    place = storage.place(state)
    journal.intend(MakePlace(place.rpartition("/")[0]))
    journal.intend(MakePlace(place))
    journal.intend(MakeFile(state))
    if kept := copy.node.file(Role.TPM):
        machine_files.copy(storage, kept.path, state)


def prove(context: Context, copy: Copy, until: float, wait: Callable[[], object] = lambda: None) -> Proof:
    """Lets the copy run, asks it, and returns what came of it. `until`: when it must have answered, by time.monotonic().
    `wait` is called when its guest is there, before it is asked.

    Changes nothing in the catalog, so copies can be asked in threads. Raises AgentError if it came up and its agent cannot tell
    how it started; NoSpaceError if it ran out of room; CancelledError."""
    started, tried = time.monotonic(), datetime.now(UTC).isoformat()
    proof = _run(context, copy, until, wait)
    return replace(proof, tried=tried, seconds=round(time.monotonic() - started), left_out=copy.trial.left_out)


def _run(context: Context, copy: Copy, until: float, wait: Callable[[], object]) -> Proof:
    with context.vm(copy.identity.uuid) as vm:
        storage = context.storage(vm.host)
        vm.go_on()
        if trouble := _wait_for_guest(context, vm, copy, until):
            require_room(storage, copy.place, MIN_FREE, "a copy that is booted")
            return _failed(trouble, _console(storage, copy.files.console))
        wait()
        try:
            with _ending_when_cancelled(context, vm):
                answer = _ask(context, vm, copy, until)
        except QuiesceError as error:
            if context.cancelled():
                raise CancelledError(CANCELLED) from error
            if _ended(vm):
                return _failed("the copy ended while it was checked", _console(storage, copy.files.console))
            raise
        require_room(storage, copy.place, MIN_FREE, "a copy that is booted")
    proofs = judge_starts(copy.node, answer.starts, answer.failed_units)
    return Proof(worst(proofs), "", summary(proofs), 0, answer.boot_ms, proofs)


def _failed(text: str, console: tuple[str, ...]) -> Proof:
    return Proof(ProofState.FAILED, "", text, 0, evidence=console)


def _wait_for_guest(context: Context, vm: Vm, copy: Copy, until: float) -> str:
    """Returns what is wrong, or the empty string when the guest's agent is there."""
    port = trial.port_for(copy.trial.xml, PORT_NAME)
    while True:
        if context.cancelled():
            raise CancelledError(CANCELLED)
        try:
            facts = vm.facts()
        except NotFoundError:
            return "the copy ended before its guest was up"
        if facts.power in (PowerState.OFF, PowerState.PAUSED):
            return "the copy stopped before its guest was up"
        if (channel := facts.channels.get(port)) and channel.connected:
            return ""
        if time.monotonic() >= until:
            return "the guest did not come up in time, or its agent did not start"
        time.sleep(POLL_S)


def _ask(context: Context, vm: Vm, copy: Copy, until: float) -> Verified:
    """Once more if an application of the checkpoint was not there yet: a program registers with the agent when it likes."""
    with context.guest(vm, vm.facts()) as guest:
        answer = guest.verify(copy.identity.uuid, max(LEAST_ANSWER_S, until - time.monotonic()))
    expected = {writer.id for writer in copy.node.writers if writer.not_accounted_for is None}
    late = expected - {start.id for start in answer.starts}
    give_up = min(until, time.monotonic() + LATE_S)
    while late and time.monotonic() < give_up:
        time.sleep(POLL_S)
        with context.guest(vm, vm.facts()) as guest:
            if late & {writer.id for writer in guest.identify(IDENTIFY_TIMEOUT_S).writers}:
                return guest.verify(copy.identity.uuid, max(LEAST_ANSWER_S, until - time.monotonic()))
    return answer


@contextmanager
def _ending_when_cancelled(context: Context, vm: Vm) -> Iterator[None]:
    """The copy is powered off when the operation is cancelled, which ends the conversation with its guest."""
    answered = threading.Event()

    def look() -> None:
        while not answered.wait(POLL_S):
            if context.cancelled():
                with suppress(QuiesceError):
                    vm.power_off()
                return

    looking = threading.Thread(target=look, name="cancelled?", daemon=True)
    looking.start()
    try:
        yield
    finally:
        answered.set()
        looking.join()


def _ended(vm: Vm) -> bool:
    try:
        return vm.facts().power is not PowerState.RUNNING
    except QuiesceError:
        return True


def _console(storage: Storage, path: str) -> tuple[str, ...]:
    """The last lines that the guest wrote there."""
    with suppress(QuiesceError):
        text = storage.read(path, MAX_CONSOLE)[-64 * 1024 :].decode(errors="replace")
        lines = ["".join(each for each in line if each.isprintable()).strip() for line in text.splitlines()]
        return tuple(line[:CONSOLE_LINE] for line in lines if line)[-CONSOLE_LINES:]
    return ()


@contextmanager
def _turn(context: Context, host: Host, what: str, at_once: int) -> Iterator[None]:
    """Waits until fewer than `at_once` copies run on this host. Raises BusyError after lock.PATIENCE_S."""
    deadline, told = time.monotonic() + lock.PATIENCE_S, False
    with ExitStack() as stack:
        while busy := _why_not_yet(context, host, what, at_once, stack):
            if time.monotonic() > deadline:
                raise busy
            if context.cancelled():
                raise CancelledError(CANCELLED)
            if not told:
                context.emit(Warned(f"waiting for its turn: {busy.message}"))
                told = True
            time.sleep(1)
        yield


def _why_not_yet(context: Context, host: Host, what: str, at_once: int, stack: ExitStack) -> BusyError | None:
    """Takes one of the places, and keeps it until the stack is closed. Returns who has the last one, if all are taken."""
    busy = None
    for number in range(at_once):
        try:
            stack.enter_context(lock.hold(context.catalog.lock_directory(), f"{host.id}-verify-{number}", what))
        except BusyError as error:
            busy = error
        else:
            return None
    return busy
