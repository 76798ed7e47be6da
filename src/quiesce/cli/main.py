"""The program `quiesce`."""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce import __version__
from quiesce.cli import (
    catalog,
    checkpoint,
    delete,
    diff,
    divergence,
    doctor,
    export,
    group,
    guest_agent_file,
    guest_install,
    import_,
    rename,
    restore,
    settings,
    show,
    start,
    tree,
    vms,
    watch,
    writers,
)

app = typer.Typer(
    name="quiesce",
    help="Application-aware (production) checkpoints for virtual machines on Linux/KVM.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 5 guest agent, 6 consistency not reached,"
    " 7 no space, 8 libvirt, 9 busy, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
guest = typer.Typer(name="guest", help="The agent inside guests.", no_args_is_help=True)

app.command("vms")(vms.command)
guest.command("install")(guest_install.command)
guest.command("agent-file")(guest_agent_file.command)
app.add_typer(guest)
app.command("writers")(writers.command)
app.command("checkpoint")(checkpoint.command)
app.command("tree")(tree.command)
app.command("show")(show.command)
app.command("diff")(diff.command)
app.command("divergence")(divergence.command)
app.command("restore")(restore.command)
app.command("rename")(rename.command)
app.command("delete")(delete.command)
app.command("export")(export.command)
app.command("import")(import_.command)
app.command("doctor")(doctor.command)
app.command("settings")(settings.command)
app.command("start")(start.command)
app.command("watch")(watch.command)
app.add_typer(group.app)
app.add_typer(catalog.app)


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
    app()
