"""Web servers and load balancers: nginx, HAProxy. They are frozen first, so that the applications behind them fall quiet.

An application still answers the requests that it has received; the answers wait in the sockets of the frozen server. New
connections wait in the kernel's backlog. nginx and HAProxy keep no data of their own.
"""

from __future__ import annotations

from quiesce.agent import identity
from quiesce.agent.writers.base import ApplicationWriter
from quiesce.agent.writers.frozen import FrozenCgroup
from quiesce.model.grades import Grade, Level

KNOWN = {"nginx": "nginx", "haproxy": "haproxy"}
"""Applications, by the kernel's name of their processes."""


def discover() -> list[ApplicationWriter]:
    """One writer for each system service. A server outside any, as in a container, is left alone: it keeps no data."""
    units = {
        unit: process.name
        for process in identity.applications(*KNOWN)
        if not process.container and (unit := identity.own_unit(process.pid))
    }
    return [WebServer(unit, KNOWN[name]) for unit, name in sorted(units.items())]


class WebServer(FrozenCgroup):
    """A front end."""

    level = Level.FRONT_END
    stateless = True
    worth = Grade.CLEAN

    def __init__(self, unit: str, application: str) -> None:
        super().__init__(f"{application}:{unit}", unit=unit)
        self.application = application
