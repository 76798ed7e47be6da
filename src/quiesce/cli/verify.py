"""quiesce verify"""

from __future__ import annotations

from typing import Annotated

import typer

from quiesce.cli import render, terminal
from quiesce.cli.options import CopyMemory, CopyTimeout, Reference
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.content import Content, ContentState, verify_content
from quiesce.operations.copies import DEFAULT_TIMEOUT_S
from quiesce.operations.verify import Proven, verify

_COLOURS = {
    ContentState.SAME: "green",
    ContentState.RECORDED: "green",
    ContentState.SPOILT: "red",
    ContentState.UNKNOWN: "yellow",
}


def _show(result: Proven | Content) -> None:
    if isinstance(result, Content):
        for image in result.images:
            terminal.out.print(f"[{_COLOURS[image.outcome]}]{image.outcome.value:<9}[/] {terminal.text(image.path)}")
        return
    terminal.out.print(render.node_line(result.checkpoint))
    render.show_proof(result.proof)


@verb(_show)
def command(
    context: Context,
    checkpoint: Reference,
    content: Annotated[
        bool,
        typer.Option("--content", help="Boot nothing: read all images of the checkpoint, and compare them with their digests."),
    ] = False,
    memory: CopyMemory = None,
    timeout: CopyTimeout = DEFAULT_TIMEOUT_S,
    at_once: Annotated[
        int,
        typer.Option("--at-once", metavar="N", help="How many copies may run on this host; further ones wait for their turn."),
    ] = 1,
) -> Proven | Content:
    """Boot a copy of a checkpoint aside, and show that its applications start as the checkpoint claims.

    The copy runs on overlays of the checkpoint's images. It has no network, no device and no file of the host or of the VM,
    which may run meanwhile. Its guest knows that it is a copy before it starts anything: timers, cron and mail stay down. Each
    application tells by its own log how it started, and checks its data.

    What came of it is recorded with the checkpoint: proven, recovered, failed or untried. The command ends with 12 if the
    checkpoint claims more than was found, or does not start.

    With --content nothing is booted. All bytes of the images, backing files included, are read. An image that has no digest yet
    gets one. If an image was moved, touched, or copied back from a backup, and has its digest, the checkpoint is known again,
    with its label. If the bytes are others, or nothing was recorded to compare them with, the exit code is 4 and the image is
    named.

    Example: quiesce verify db1@before-upgrade
    """
    if content:
        compared = verify_content(context, context.reference(checkpoint))
        compared.require()
        return compared
    return verify(
        context,
        context.reference(checkpoint),
        memory=memory << 20 if memory is not None else None,
        timeout_s=timeout,
        at_once=at_once,
    )
