"""Writers: one file an application, each a module with `discover() -> list of ApplicationWriter`."""

from __future__ import annotations

from typing import Protocol

from quiesce.model.grades import Level
from quiesce.model.reports import Writer


class HoldError(Exception):
    """The application could not be brought to rest in time. The message says what stands in the way."""


class ApplicationWriter(Protocol):
    """One application in this machine.

    The order is identify or prepare, hold, release; abort may come at any time and several times. What a hold leaves in the
    application must vanish with this process: a session that closes, a lock that dies with it.
    """

    level: Level

    def identify(self) -> Writer:
        """How the application stands now. Never raises; what went wrong is the grade's reason."""

    def prepare(self, deadline_ns: int, window_ms: int) -> None:
        """Everything slow, while the application runs. Never raises; see `identify` for the outcome.

        `deadline_ns`: CLOCK_MONOTONIC. `window_ms`: after this long a hold must end by itself, should we die.
        """

    def hold(self, deadline_ns: int) -> None:
        """Brings the application to rest at a boundary of its own, its files complete. Raises HoldError, having let go."""

    def forgo(self, reason: str) -> None:
        """Goes on without holding this application; it is graded a crash image."""

    def release(self) -> None:
        """Looks whether the hold held to the end, sets the grade earned, lets go. Never raises."""

    def abort(self) -> None:
        """Lets go, closes everything. Idempotent; never raises."""

    def paths(self) -> list[str]:
        """Directories that hold all its files; each must lie on a filesystem that freezes."""

    def remember(self) -> None:
        """Keeps, outside the window, what the next attempt may learn from this one. Never raises."""


def discover() -> list[ApplicationWriter]:
    """Every application found in this machine."""
    from quiesce.agent.writers import postgresql, unsupported

    return [*postgresql.discover(), *unsupported.discover()]
