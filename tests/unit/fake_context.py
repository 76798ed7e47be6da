"""A context whose host is the one in memory (fake_host.py), and whose guests follow scripts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from quiesce.context import Context
from quiesce.guests.port import Guest
from quiesce.guests.scripted import ScriptedGuest
from quiesce.hypervisor.events import Lifecycle
from quiesce.hypervisor.glances import Glance
from quiesce.hypervisor.vm import Facts
from quiesce.model.errors import NotFoundError
from quiesce.model.names import TRIAL_PREFIX
from quiesce.storage.port import Storage
from tests.unit.fake_host import FakeHost


class FakeEvents:
    """The part of LifecycleEvents that operations use."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host

    def next(self, _timeout: float) -> Lifecycle | None:
        return self._host.events.pop(0) if self._host.events else None

    def close(self) -> None:
        self._host.events.clear()


@dataclass(frozen=True)
class FakeContext(Context):
    fake: FakeHost = field(kw_only=True)
    guests: dict[str, ScriptedGuest] = field(default_factory=dict, kw_only=True)
    """By the name of the VM; TRIAL_PREFIX with the name of the VM for copies of its checkpoints, or without for all copies. Any
    other VM is asked as a real one would be."""
    real_locks: bool = field(default=False, kw_only=True)

    @contextmanager
    def host(self) -> Iterator[Any]:
        yield self.fake

    @contextmanager
    def vm(self, name: str, host: Any = None) -> Iterator[Any]:  # noqa: ARG002 - there is one
        for vm in self.fake.vms:
            if name in (vm.name, vm.uuid):
                yield vm
                return
        raise NotFoundError(f"no VM named {name!r}")

    def glances(self, host: Any) -> list[Glance]:
        found = (vm.facts() for vm in host.vms)
        return [Glance(facts.name, facts.uuid, facts.power, facts.channels) for facts in found]

    def power_changes(self) -> Any:
        return FakeEvents(self.fake)

    def storage(self, host: Any) -> Storage:
        return host.storage

    def guest(self, vm: Any, facts: Facts) -> AbstractContextManager[Guest]:
        name = self._of_copy(vm) if vm.name.startswith(TRIAL_PREFIX) else vm.name
        if name not in self.guests:
            return super().guest(vm, facts)
        self.guests[name].closed = False
        return closing(self.guests[name])

    def _of_copy(self, copy: Any) -> str:
        """The guest of a copy of one VM, by the VM's image, or of all copies."""
        below = [image for path in copy.sources().values() for image in self.fake.storage.chain(path)]
        own = [name for name in self.guests if name.startswith(TRIAL_PREFIX) and name != TRIAL_PREFIX]
        return next((name for name in own if f"/i/{name.removeprefix(TRIAL_PREFIX)}.qcow2" in below), TRIAL_PREFIX)

    @contextmanager
    def locked(self, vm: Any, verb: str) -> Iterator[None]:
        with super().locked(vm, verb) if self.real_locks else nullcontext():
            yield
