"""quiesce settings"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import render, terminal
from quiesce.cli.options import Overlays, RequireGrade, Vm
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.model.errors import UsageError
from quiesce.model.grades import Consistency
from quiesce.model.settings import Settings, Type, VerifyWhen
from quiesce.operations.settings import settings


def _show(found: Settings) -> None:
    out = terminal.out
    out.print(f"type       {found.type.value}")
    out.print(f"require    {render.label(found.require)}")
    out.print(f"automatic  {'yes' if found.automatic else 'no'}")
    out.print(f"exclude    {terminal.text(' '.join(found.exclude)) or '-'}")
    out.print(f"grade      {found.require_grade.value}")
    out.print(f"quarantine {found.quarantine_days} days")
    out.print(f"overlays   {terminal.text(found.overlays or '') or '-'}")
    out.print(f"verify     {found.verify.value}")


@verb(_show)
def command(
    context: Context,
    vm: Vm,
    type: Annotated[
        Type | None,
        typer.Option(
            help="production: the guest's applications hold their writes. standard: the memory is saved instead. disabled: no"
            " checkpoint is taken."
        ),
    ] = None,
    require: Annotated[
        Consistency | None,
        typer.Option(help="The lowest label to accept. If it cannot be had, a checkpoint fails and nothing is kept."),
    ] = None,
    require_grade: RequireGrade = None,
    automatic: Annotated[
        bool | None,
        typer.Option(
            "--automatic/--no-automatic",
            help="Take a checkpoint when the VM starts and has none, and remove it after a clean shutdown. Needs `quiesce"
            " watch`.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DISK",
            help="Leave this disk out, for example vdb. Replaces the disks that were set before. Can be given several times.",
        ),
    ] = None,
    quarantine_days: Annotated[
        int | None,
        typer.Option(
            metavar="DAYS",
            min=0,
            max=36500,
            help="How long `quiesce doctor --repair` keeps a file in the quarantine beside the images before it removes it.",
        ),
    ] = None,
    no_exclude: Annotated[bool, typer.Option("--no-exclude", help="Leave no disk out any more.")] = False,
    overlays: Overlays = None,
    no_overlays: Annotated[
        bool, typer.Option("--no-overlays", help="Make overlays beside the images again that they are based on.")
    ] = False,
    verify: Annotated[
        VerifyWhen | None,
        typer.Option(
            help="When `quiesce watch` boots the VM's newest checkpoint aside, as `quiesce verify` does: always, for every new"
            " one; daily, at most one in 24 hours; never."
        ),
    ] = None,
) -> Settings:
    """Show or change how checkpoints of a VM are taken. Options of `quiesce checkpoint` take precedence.

    Without options, the command only shows the settings.

    Example: quiesce settings db1 --require filesystem --exclude vdb
    """
    if exclude and no_exclude:
        raise UsageError("--exclude and --no-exclude contradict each other")
    if overlays is not None and no_overlays:
        raise UsageError("--overlays and --no-overlays contradict each other")
    chosen = () if no_exclude else tuple(exclude) if exclude else None
    return settings(
        context,
        vm,
        type=type,
        require=require,
        require_grade=require_grade,
        automatic=automatic,
        exclude=chosen,
        quarantine_days=quarantine_days,
        overlays="" if no_overlays else overlays,
        verify=verify,
    )
