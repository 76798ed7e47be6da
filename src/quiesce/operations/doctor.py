"""Looks for contradictions between the catalog, the images, the manifests and libvirt, and corrects them.

What is looked for is in repair/looks.py, what is decided in repair/faults.py, what is done in repair/mends.py. Here is the
order: the VM must be one that libvirt has, then nothing may be interrupted, then each fault is treated, and after each repair
all is looked at anew."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial

from quiesce.catalog.journal import Interrupted, interrupted
from quiesce.context import Context
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import BusyError, CancelledError, QuiesceError
from quiesce.operations.delete import go_on
from quiesce.operations.shorten import shorten
from quiesce.recovery import recover_all
from quiesce.repair import lost, trials
from quiesce.repair.faults import (
    AbandonedCopy,
    Choice,
    DefinedAnew,
    Fault,
    InterruptedImport,
    InterruptedVerb,
    LongChain,
    Remedy,
    Undefined,
    Unexamined,
    Unmerged,
)
from quiesce.repair.looks import faults, quarantined, survey_with_neighbours
from quiesce.repair.mends import mend
from quiesce.repair.rounds import Rounds
from quiesce.storage.port import Aside


@dataclass(frozen=True)
class Treated:
    """A fault, its plan, and what became of it."""

    fault: Fault
    remedy: Remedy
    done: str | None = None
    """What was done; None: nothing."""
    problem: str | None = None
    """Why the plan could not be carried out."""

    @property
    def left(self) -> bool:
        return self.remedy.wrong and self.done is None


@dataclass(frozen=True)
class Kept:
    """A file in the quarantine."""

    aside: Aside
    days: int
    """How long files stay there."""


@dataclass(frozen=True)
class Diagnosis:
    """The faults about one VM."""

    vm: str
    items: tuple[Treated, ...]
    quarantine: tuple[Kept, ...] = ()

    @property
    def found(self) -> tuple[str, ...]:
        """A sentence for each thing that was wrong."""
        return tuple(item.fault.text for item in self.items if item.remedy.wrong)

    @property
    def mended(self) -> tuple[str, ...]:
        """A sentence for each thing that was done; empty without --repair."""
        return tuple(item.done for item in self.items if item.done is not None)

    @property
    def left(self) -> bool:
        """Whether anything is still wrong."""
        return any(item.left for item in self.items)


def doctor(
    context: Context, vm_name: str | None, *, repair: bool, give_up: Collection[str] = (), define_lost: bool = False
) -> list[Diagnosis]:
    """Examines the checkpoints of a VM or, if `vm_name` is None, of all VMs. With `repair`, corrects what can be corrected
    without a loss, and gives up what `give_up` names: checkpoints, paths.

    Defines a VM that libvirt lost only if `vm_name` names it, or with `define_lost`. Raises BusyError while an operation on the
    VM runs.
    """
    with context.host() as host:
        treatment = _Treatment(context, Rounds(context, host), repair, frozenset(give_up), define_lost)
        if vm_name is not None:
            return [treatment.of(vm_name, named=True)]
        here = {str(domain.UUIDString()): str(domain.name()) for domain in host.domains()}
        copies = {left.key: left.vm for left in treatment.abandoned}
        known = [key.uuid for key in context.catalog.vms(host.id) if key not in copies]
        found = []
        for number, uuid in enumerate(known):
            context.progress("examine VMs")(number, len(known))
            found.append(treatment.of_one_of_many(here.get(uuid, uuid)))
        strays = dict.fromkeys(vm for vm in copies.values() if vm not in known)
        return [*found, *(Diagnosis(uuid, tuple(treatment.copies(uuid, uuid))) for uuid in strays)]


@dataclass(frozen=True)
class _Treatment:
    context: Context
    rounds: Rounds
    repair: bool
    give_up: frozenset[str]
    define_lost: bool

    def of_one_of_many(self, name: str) -> Diagnosis:
        """An error becomes a fault, so that the other VMs are examined, too."""
        try:
            return self.of(name, named=False)
        except CancelledError:
            raise
        except QuiesceError as error:
            return _unexamined(name, error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - a fault of ours at one VM must not hide the faults of the others
            return _unexamined(name, f"quiesce cannot examine this VM, by a fault of its own: {error!r}")

    def of(self, name: str, *, named: bool) -> Diagnosis:
        context, rounds, items = self.context, self.rounds, list[Treated]()
        if never := lost.never_imported(context, rounds.host, name):
            fault = InterruptedImport(name, name, f"the import of VM {name} was interrupted")
            return Diagnosis(name, (self._treat(fault, lambda _: never()),))
        if gone := rounds.undefined(name):
            again = self._treat(
                Undefined(
                    gone.name,
                    gone.key.uuid,
                    f"libvirt no longer has the VM {gone.name}; the catalog has {gone.checkpoints} checkpoints of it",
                    lost.known_of(context, gone),
                    wanted=named or self.define_lost,
                ),
                lambda _: lost.define_again(context, gone),
            )
            items.append(again)
            if again.done is None:
                return Diagnosis(gone.name, tuple(items))
        with context.vm(name, rounds.host) as vm:
            if old := lost.redefined(context, vm, lambda: rounds.lost):
                text = f"{vm.name} was defined anew, with another UUID; {old.checkpoints} checkpoints have its old UUID"
                anew = DefinedAnew(
                    vm.name, old.key.uuid, text, (f"its old UUID is {old.key.uuid}",), lost.surely_same(context, vm, old)
                )
                items.append(self._treat(anew, lambda _: lost.take_over(context, vm, old)))
            items += self.copies(vm.name, vm.uuid)
            with context.locked(vm, "doctor"):
                found, present = self._locked(vm)
                return Diagnosis(vm.name, (*items, *present), _quarantine(context, vm, found))

    @cached_property
    def abandoned(self) -> list[trials.Abandoned]:
        """Of all VMs."""
        return trials.abandoned(self.context, self.rounds.host)

    def copies(self, name: str, uuid: str) -> list[Treated]:
        """Copies of the VM's checkpoints that were booted aside, and whose process is gone."""
        items = []
        for left in [each for each in self.abandoned if each.vm == uuid]:
            with suppress(BusyError):  # it is under way
                clear = partial(trials.clear, self.context, self.rounds.host, left)
                clear(only_look=True)
                fault = AbandonedCopy(name, left.operation.id, left.text)
                items.append(self._treat(fault, lambda _, clear=clear: clear()))  # type: ignore[misc]
        return items

    def _locked(self, vm: Vm) -> tuple[Survey, list[Treated]]:
        """The VM as it is in the end, and what was found."""
        items = [
            Treated(fault := _interrupted(vm, operation), fault.remedy())
            for operation in interrupted(self.context.catalog, vm.key)
        ]
        if items and not self.repair:
            return survey(self.context, vm, patient=True), items  # other faults may come from the interrupted operation
        if items:
            outcomes = recover_all(self.context, vm)
            items = [replace(item, done=outcome) for item, outcome in zip(items, outcomes, strict=False)]
            rest = outcomes[len(items) :]
            items = [*items[:-1], replace(items[-1], done="; ".join([str(items[-1].done), *rest]))]
        seen: dict[Fault, Treated] = {}
        found, present = self._look(vm)
        while new := [fault for fault in present if fault not in seen]:
            for fault in new:
                seen[fault] = self._treat(fault, self._way(fault, vm))
                if seen[fault].done:
                    break
            if self.repair:
                found, present = self._look(vm)  # a repair may change the others
        for fault in seen.keys() & set(present):
            if done := seen[fault].done:
                seen[fault] = replace(seen[fault], done=None, problem=f"{done}; but it is still found")
        return found, [*items, *seen.values()]

    def _look(self, vm: Vm) -> tuple[Survey, list[Fault]]:
        found = survey_with_neighbours(self.context, self.rounds, vm)
        return found, list(faults(self.context, self.rounds, vm, found))

    def _way(self, fault: Fault, vm: Vm) -> Callable[[Choice | None], str]:
        if isinstance(fault, Unmerged):
            return lambda _: _merge(self.context, vm)
        if isinstance(fault, LongChain):
            return lambda _: _shorten(self.context, vm, fault.subject)
        return lambda choice: mend(fault, self.context, vm, choice)

    def _treat(self, fault: Fault, way: Callable[[Choice | None], str]) -> Treated:
        plan = fault.remedy()
        choice = next((choice for choice in plan.choices if choice.give_up in self.give_up), None)
        if not self.repair or not (plan.does or choice):
            return Treated(fault, plan)
        try:
            return Treated(fault, plan, done=way(None if plan.does else choice))
        except BusyError:
            raise
        except QuiesceError as error:
            return Treated(fault, plan, problem=error.message)
        finally:
            self.rounds.look_again()


def _unexamined(name: str, text: str, hint: str | None = None) -> Diagnosis:
    return Diagnosis(name, (Treated(Unexamined(name, name, text), Remedy(advice=hint)),))


def _interrupted(vm: Vm, operation: Interrupted) -> Fault:
    text = f"the {operation.verb} begun at {operation.started} was interrupted"
    return InterruptedVerb(vm.name, operation.id, text)


def _merge(context: Context, vm: Vm) -> str:
    waiting = go_on(context, vm)
    return "; ".join(["deleted checkpoints were merged", *(f"{item.name}: {item.reason}" for item in waiting)])


def _shorten(context: Context, vm: Vm, target: str) -> str:
    found = survey(context, vm)
    shorten(context, vm, target, str(found.chains.below.get(found.head[target])))
    return f"the backing chain of disk {target} was made shorter"


def _quarantine(context: Context, vm: Vm, found: Survey) -> tuple[Kept, ...]:
    days = context.catalog.settings.get(vm.key).quarantine_days
    return tuple(Kept(aside, days) for aside in quarantined(context, vm, found))


def exit_code(diagnoses: Collection[Diagnosis]) -> int:
    """As docs/exit-codes.md has it."""
    if any(diagnosis.left for diagnosis in diagnoses):
        return LEFT
    return MENDED if any(item.done and item.remedy.wrong for one in diagnoses for item in one.items) else 0


MENDED = 10
LEFT = 11


def recover(_context: Context, _vm: Vm, _operation: Interrupted) -> str:
    """Nothing to do: labels are lowered or not, checkpoints given up or not, and recovery.py writes the manifests again."""
    return "can be called again"
