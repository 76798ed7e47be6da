"""Shows and changes the settings of a VM: how its checkpoints are taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quiesce.catalog import lock
from quiesce.context import Context
from quiesce.disks import places
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency, RequiredGrade
from quiesce.model.settings import Settings, Type, VerifyWhen
from quiesce.taking.requirements import require_some_disk_left


def settings(
    context: Context,
    vm_name: str,
    *,
    type: Type | None = None,
    require: Consistency | None = None,
    require_grade: RequiredGrade | None = None,
    automatic: bool | None = None,
    exclude: tuple[str, ...] | None = None,
    quarantine_days: int | None = None,
    overlays: str | None = None,
    verify: VerifyWhen | None = None,
) -> Settings:
    """Changes those settings whose arguments are not None, and returns the VM's settings. `exclude` replaces the whole list. An
    empty `overlays` means beside the images again.

    New settings apply from the next checkpoint on. Raises UsageError, and changes nothing, if the VM does not have a disk of
    `exclude`, or if no disk would be left; RefusedError if the directory `overlays` cannot be used; NotFoundError.
    """
    given: dict[str, Any] = {
        "type": type,
        "require": require,
        "require_grade": require_grade,
        "automatic": automatic,
        "exclude": exclude,
        "quarantine_days": quarantine_days,
        "overlays": overlays,
        "verify": verify,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    with context.vm(vm_name) as vm:
        catalog = context.catalog
        if not changes:
            return catalog.settings.get(vm.key)
        if exclude:
            changes["exclude"] = tuple(dict.fromkeys(exclude))
            require_some_disk_left(vm.facts(), exclude)
        if overlays is not None:
            changes["overlays"] = places.chosen(context.storage(vm.host), overlays) if overlays else None
        with lock.wait(catalog.lock_directory(), f"{vm.key.host}-{vm.uuid}-settings"):
            changed = replace(catalog.settings.get(vm.key), **changes)
            catalog.settings.put(vm.key, changed)
    if changed.automatic and changed.type is Type.DISABLED:
        context.emit(Warned(f"quiesce takes no automatic checkpoint of {vm.name} while its type is disabled"))
    return changed
