"""quiesce watch"""

from __future__ import annotations

import os
import signal
import threading

import typer
from rich.text import Text

from quiesce.cli import options, terminal
from quiesce.cli.options import CatalogUrl, Connect
from quiesce.context import Context, default_uri
from quiesce.model.errors import QuiesceError
from quiesce.server.said import Said, Severity
from quiesce.server.watch import watch

PRIORITIES = {Severity.INFO: 6, Severity.WARNING: 4, Severity.ERROR: 3}
"""The numbers of syslog. journald reads them from the beginning of a line, as `<4>`: sd-daemon(3)."""


def command(connect: Connect = None, catalog: CatalogUrl = None) -> None:
    """Take and remove automatic checkpoints, and verify checkpoints, until stopped. Run it as a service.

    The command watches all VMs that are set to automatic checkpoints (`quiesce settings VM --automatic`). When such a VM starts
    and has no checkpoint, one is taken as soon as the guest agent answers. When the guest has shut down cleanly, the checkpoint
    is removed. A VM that was powered off or crashed keeps it.

    The newest checkpoints of VMs that are set to it (`quiesce settings VM --verify`) are booted aside as by `quiesce verify`,
    one at a time and at low priority.
    """
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # threads started from now on inherit this
    stop = threading.Event()

    def wait_for_signal() -> None:
        signal.sigwait(signals)
        stop.set()

    threading.Thread(target=wait_for_signal, daemon=True).start()
    try:
        store = options.open_catalog(catalog)
    except QuiesceError as error:
        _say(Said(Severity.ERROR, error.message))
        raise typer.Exit(error.exit_code) from None
    try:
        watch(Context(connect or default_uri(), store, lambda _: None), stop, _say)
    finally:
        store.close()


def _say(said: Said) -> None:
    prefix = f"<{PRIORITIES[said.severity]}>" if "JOURNAL_STREAM" in os.environ else ""
    terminal.err.print(Text(prefix + terminal.visible(said.text)))
