"""Shows and changes how a VM's checkpoints are to be taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quiesce.catalog import lock
from quiesce.context import Context
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.settings import Settings, Type
from quiesce.taking.requirements import require_some_disk_left


def settings(
    context: Context,
    vm_name: str,
    *,
    type: Type | None = None,
    require: Consistency | None = None,
    automatic: bool | None = None,
    exclude: tuple[str, ...] | None = None,
) -> Settings:
    """The VM's settings, after what is given was put in place of what they were; `exclude` replaces all of the list.

    Holds from the next checkpoint on; one under way is not changed. Raises UsageError, and changes nothing, for a disk that is
    none of the VM's, or if no disk would be left; NotFoundError.
    """
    given: dict[str, Any] = {"type": type, "require": require, "automatic": automatic, "exclude": exclude}
    changes = {name: value for name, value in given.items() if value is not None}
    with context.vm(vm_name) as vm:
        catalog = context.catalog
        if not changes:
            return catalog.settings.get(vm.key)
        if exclude:
            changes["exclude"] = tuple(dict.fromkeys(exclude))
            require_some_disk_left(vm.facts(), exclude)
        with lock.wait(catalog.lock_directory(), f"{vm.key.host}-{vm.uuid}-settings"):
            changed = replace(catalog.settings.get(vm.key), **changes)
            catalog.settings.put(vm.key, changed)
    if changed.automatic and changed.type is Type.DISABLED:
        context.emit(Warned(f"no checkpoint of {vm.name} is taken automatically while its type is disabled"))
    return changed
