"""quiesce guest agent-file"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quiesce.cli import terminal
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.guest_agent_file import AgentFile, guest_agent_file


def _show(file: AgentFile) -> None:
    name = Path(file.path).name
    terminal.out.print(
        f"wrote {terminal.text(file.path)}, {file.bytes} bytes; in the guest: python3 {terminal.text(name)} --install"
    )


@verb(_show)
def command(
    context: Context,
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The file to write, for example quiesce-agent.pyz.", dir_okay=False)
    ],
) -> AgentFile:
    """Write the guest agent to a file, for guests that `quiesce guest install` cannot reach.

    Copy the file into the guest and run there: python3 quiesce-agent.pyz --install

    This is for guests under other platforms, such as Proxmox VE or oVirt. When the platform takes a snapshot through
    qemu-guest-agent, the agent makes the applications in the guest hold their writes.
    """
    return guest_agent_file(context, path)
