"""Arguments and options that several verbs take, and their completion in the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quiesce.catalog.database import default_url
from quiesce.catalog.store import Catalog
from quiesce.context import default_uri
from quiesce.hypervisor.connection import Host
from quiesce.model.errors import QuiesceError
from quiesce.model.grades import RequiredGrade
from quiesce.model.keys import VmKey
from quiesce.model.names import HELPER_PREFIX, TRIAL_PREFIX


def _complete_vm(incomplete: str) -> list[str]:
    try:
        host = Host(default_uri())
    except QuiesceError:
        return []
    try:
        names = [str(domain.name()) for domain in host.domains()]
        return [name for name in names if name.startswith(incomplete) and not name.startswith((HELPER_PREFIX, TRIAL_PREFIX))]
    finally:
        host.close()


def _complete_reference(incomplete: str) -> list[str]:
    named = [incomplete[:at] for at, sign in enumerate(incomplete) if sign == "@"]
    found = [f"{name}@" for name in _complete_vm(incomplete)]
    if not named:
        return found
    try:
        host = Host(default_uri())
        try:
            catalog = Catalog()
            id = catalog.hosts.identify(host.identity)
            for vm in filter(host.has, named):
                nodes = catalog.checkpoints.readable(VmKey(id, host.uuid_of(vm)))[0].checkpoints
                found += [reference for node in nodes if (reference := f"{vm}@{node.name}").startswith(incomplete)]
        finally:
            host.close()
    except QuiesceError:
        return []
    return found


def _complete_group(incomplete: str) -> list[str]:
    try:
        return [name for name in Catalog().groups.names() if name.startswith(incomplete)]
    except QuiesceError:
        return []


def _complete_part(incomplete: str) -> list[str]:
    """`GROUP@CHECKPOINT`."""
    group, separator, _ = incomplete.partition("@")
    if not separator:
        return [f"{name}@" for name in _complete_group(group)]
    try:
        parts = Catalog().checkpoints.of_group(group)
    except QuiesceError:
        return []
    return [reference for part in parts if (reference := f"{group}@{part.name}").startswith(incomplete)]


PartReference = Annotated[
    str,
    typer.Argument(metavar="GROUP@CHECKPOINT", help="A group's checkpoint, by name or id.", autocompletion=_complete_part),
]
GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="Name of the group.", autocompletion=_complete_group)]
Members = Annotated[
    list[str],
    typer.Argument(
        metavar="MEMBER...", help="VM, VM:TIER (front, middle, back or external), or @GROUP to include another group."
    ),
]
Vm = Annotated[str, typer.Argument(metavar="VM", help="Name or UUID of the VM.", autocompletion=_complete_vm)]
OptionalVm = Annotated[
    str | None, typer.Argument(metavar="[VM]", help="Name or UUID of the VM; all VMs if left out.", autocompletion=_complete_vm)
]
Reference = Annotated[
    str,
    typer.Argument(metavar="VM@CHECKPOINT", help="A checkpoint, by name or id.", autocompletion=_complete_reference),
]
References = Annotated[
    list[str],
    typer.Argument(
        metavar="VM@CHECKPOINT...",
        help="Checkpoints, by name, id or shell pattern.",
        autocompletion=_complete_reference,
    ),
]

CheckpointName = Annotated[
    str | None,
    typer.Option(
        "--name",
        "-n",
        metavar="NAME",
        help="Name of the checkpoint, at most 100 characters. \\[default: the time, UTC; with -2 if another one has it]",
    ),
]
Window = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", min=0.5, max=60, help="The longest time that writes may be held; the guest itself enforces it."
    ),
]
RequireGrade = Annotated[
    RequiredGrade | None,
    typer.Option(
        help="The lowest grade of an application in an application-consistent checkpoint. stands-still: its start rolls forward"
        " what was acknowledged, and back what was not. nil-redo: nothing is in flight, and its start changes nothing; not"
        " every load can have that. \\[default: the VM's setting, or stands-still]"
    ),
]
Overlays = Annotated[
    str | None,
    typer.Option(
        metavar="DIRECTORY",
        help="The directory of the host for new overlays and the files beside them. A disk that is a block device needs one,"
        " unless another disk of the VM is a file. \\[default: where the disk's image is]",
    ),
]
CopyMemory = Annotated[
    int | None, typer.Option("--memory", metavar="MIB", min=64, help="Most memory of a copy. Default: the VM's own.")
]
CopyTimeout = Annotated[
    float,
    typer.Option("--timeout", metavar="S", help="Longest time from the copy's start until all is checked, in seconds."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Only show what would be deleted.")]
AcceptDivergence = Annotated[
    bool, typer.Option("--accept-divergence", help="Restore even if other servers have moved on or cannot be asked.")
]
AcceptChanged = Annotated[
    bool,
    typer.Option(
        "--accept-changed-images",
        help="Go on even if another program changed, or may have changed, an image of the checkpoint. What is restored or"
        " exported is crash-consistent.",
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON. Progress and warnings go to standard error.")]
Connect = Annotated[
    str | None,
    typer.Option(
        "--connect",
        "-c",
        metavar="URI",
        help="libvirt URI of the host. \\[env: LIBVIRT_DEFAULT_URI; default: qemu:///system]",
    ),
]
CatalogUrl = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        metavar="URL",
        help="The catalog of checkpoints: a database URL or the path of an SQLite file. \\[env: QUIESCE_CATALOG; default:"
        " /var/lib/quiesce/catalog.db for root]",
    ),
]


def open_catalog(url: str | None) -> Catalog:
    """The catalog that --catalog names: a URL, or the path of an SQLite file; without it, the default one. Raises QuiesceError
    if it cannot be opened."""
    return Catalog(_catalog_url(url))


def catalog_file(url: str | None) -> Path | None:
    """The file of the catalog that --catalog names, if it is an SQLite file."""
    scheme, _, path = _catalog_url(url).partition(":///")
    return Path(path) if scheme == "sqlite" and path else None


def _catalog_url(url: str | None) -> str:
    if url is None:
        return default_url()
    return url if "://" in url else f"sqlite:///{Path(url).absolute()}"
