"""quiesce start"""

from __future__ import annotations

from quiesce.cli import render, terminal
from quiesce.cli.options import Vm
from quiesce.cli.verb import verb
from quiesce.context import Context
from quiesce.operations.start import Started, start


def _show(result: Started) -> None:
    if node := result.checkpoint:
        name = f"{terminal.text(node.vm_name)}@{terminal.text(node.name)}"
        terminal.out.print(f"checkpoint [bold]{name}[/] ({render.label(node.consistency)})")
    terminal.out.print(f"{terminal.text(result.vm)} is running")


@verb(_show)
def command(context: Context, vm: Vm) -> Started:
    """Start a VM, and take its automatic checkpoint first.

    A checkpoint is taken only if the VM is set to automatic checkpoints (`quiesce settings VM --automatic`) and has none. It is
    taken while the VM is off. If it fails, the VM stays off. If only the required label cannot be had, as after a power
    failure, the VM is started without a checkpoint.
    """
    return start(context, vm)
