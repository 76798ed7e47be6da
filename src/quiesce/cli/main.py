"""The program `quiesce`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated

import typer

from quiesce import __version__
from quiesce.cli import (
    catalog_rebuild,
    checkpoint,
    delete,
    diff,
    divergence,
    doctor,
    export,
    group_add,
    group_checkpoint,
    group_create,
    group_delete,
    group_divergence,
    group_forget,
    group_list,
    group_remove,
    group_report,
    group_restore,
    group_show,
    group_verify,
    guest_agent_file,
    guest_install,
    import_,
    rename,
    report,
    restore,
    settings,
    settle,
    show,
    start,
    streams,
    tree,
    verify,
    vms,
    watch,
    writers,
)

app = typer.Typer(
    name="quiesce",
    help="Application-aware (production) checkpoints for virtual machines on Linux/KVM.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused, 5 guest agent, 6 label not reached,"
    " 7 no space, 8 libvirt, 9 busy, 10 and 11 of doctor: mended, something left, 12 not as claimed, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
guest = typer.Typer(name="guest", help="Install the agent in guests.", no_args_is_help=True)
group = typer.Typer(
    name="group", help="Checkpoint, verify and restore several VMs that are one application.", no_args_is_help=True
)
catalog = typer.Typer(name="catalog", help="Rebuild the catalog, which records all checkpoints.", no_args_is_help=True)


def _flowing(text: str) -> str:
    """Every paragraph on one line: typer breaks lines to the width of the terminal, but keeps the line breaks there are."""
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in inspect.cleandoc(text).split("\n\n"))


def _add(parent: typer.Typer, name: str, command: Callable[..., None]) -> None:
    parent.command(name, help=_flowing(command.__doc__ or ""))(command)


_add(app, "vms", vms.command)
_add(guest, "install", guest_install.command)
_add(guest, "agent-file", guest_agent_file.command)
app.add_typer(guest)
_add(app, "writers", writers.command)
_add(app, "checkpoint", checkpoint.command)
_add(app, "tree", tree.command)
_add(app, "show", show.command)
_add(app, "report", report.command)
_add(app, "diff", diff.command)
_add(app, "divergence", divergence.command)
_add(app, "verify", verify.command)
_add(app, "settle", settle.command)
_add(app, "restore", restore.command)
_add(app, "rename", rename.command)
_add(app, "delete", delete.command)
_add(app, "export", export.command)
_add(app, "import", import_.command)
_add(app, "doctor", doctor.command)
_add(app, "settings", settings.command)
_add(app, "start", start.command)
_add(app, "watch", watch.command)
_add(group, "create", group_create.command)
_add(group, "add", group_add.command)
_add(group, "remove", group_remove.command)
_add(group, "forget", group_forget.command)
_add(group, "list", group_list.command)
_add(group, "show", group_show.command)
_add(group, "report", group_report.command)
_add(group, "checkpoint", group_checkpoint.command)
_add(group, "verify", group_verify.command)
_add(group, "restore", group_restore.command)
_add(group, "divergence", group_divergence.command)
_add(group, "delete", group_delete.command)
app.add_typer(group)
_add(catalog, "rebuild", catalog_rebuild.command)
app.add_typer(catalog)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quiesce {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    with streams.forgiving():
        app()
