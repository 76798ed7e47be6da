"""A host on which exports of strangers are imported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from lab.machine import URI, new_name
from quiesce.catalog.store import Catalog
from quiesce.context import Context
from quiesce.model.errors import QuiesceError, UsageError
from quiesce.model.events import Event
from quiesce.operations.doctor import doctor
from quiesce.operations.import_ import Imported, import_vm
from tests.strangers import Stranger, everything_below


class Target:
    """A host on which exports are imported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.to = path / "to"
        self.secret = path / "secret"
        self.secret.write_bytes(b"the password" + bytes(4084))
        self.secret.chmod(0o600)
        self.heard: Callable[[Event], None] = lambda _: None
        self.catalog = Catalog(f"sqlite:///{path}/catalog/catalog.db")
        self.context = Context(URI, self.catalog, lambda event: self.heard(event))
        self.connection = libvirt.open(URI)

    def import_(self, stranger: Stranger, **words: object) -> Imported:
        options: dict[str, object] = {"to": str(self.to), "name": new_name(), **words}
        return import_vm(self.context, str(stranger.place), **options)  # type: ignore[arg-type]

    def refuses(self, stranger: Stranger, match: str, kind: type[QuiesceError] = UsageError, **words: object) -> None:
        """The import fails, and all on the host is as it was."""
        before, vms = everything_below(self.path), self._vms()
        with pytest.raises(kind, match=match):
            self.import_(stranger, **words)
        after = everything_below(self.path)
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        assert {path for path in changed if "/catalog" not in path} == set()
        assert self._vms() == vms
        assert [found for each in doctor(self.context, None, repair=False) for found in each.found] == []

    def _vms(self) -> list[str]:
        return sorted(domain.name() for domain in self.connection.listAllDomains())

    def definition(self, vm: Imported) -> str:
        return str(self.connection.lookupByUUIDString(vm.uuid).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    @contextlib.contextmanager
    def imported(self, stranger: Stranger, **words: object) -> Iterator[Imported]:
        vm = self.import_(stranger, **words)
        try:
            yield vm
        finally:
            self.remove(vm.uuid)

    def remove(self, vm_uuid: str) -> None:
        domain = self.connection.lookupByUUIDString(vm_uuid)
        with contextlib.suppress(libvirt.libvirtError):
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_TPM)

    def start(self, vm_uuid: str) -> None:
        self.connection.lookupByUUIDString(vm_uuid).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
