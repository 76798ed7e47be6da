"""Finds the applications of this machine: the modules that know one each, scripts, and the administrator's declarations."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from quiesce.agent import looks, memory
from quiesce.agent.writers import declared, scripts, unaccounted
from quiesce.agent.writers.base import ApplicationWriter
from quiesce.agent.writers.unsupported import Unanswered

BUILT_IN = (
    "postgresql",
    "mariadb",
    "redis",
    "pgbouncer",
    "openldap",
    "rabbitmq",
    "web",
    "sqlite",
    "down",
    "unsupported",
    "strangers",
)
"""Modules of this package with a `discover()` that returns the writers of one application."""

LAST_ERRORS = "last-errors"


def discover(others: Iterable[ApplicationWriter] = (), *, without: str = "") -> list[ApplicationWriter]:
    """Every application found in this machine, `others`, and programs that none of these accounts for, with the settings of the
    administrator's files.

    `without`: a platform that runs its own scripts itself, so that they are left out here.
    """
    found: list[ApplicationWriter] = scripts.discover(without=without)
    for name in BUILT_IN:
        try:
            found += importlib.import_module(f"quiesce.agent.writers.{name}").discover()
        except looks.NotAnsweringError as error:
            found.append(Unanswered(name, name, str(error)))
    errors = memory.recall(LAST_ERRORS)
    found = declared.configured([*found, *others], unaccounted.discover)
    seen: dict[str, int] = {}
    for writer in found:
        number = seen[writer.id] = seen.get(writer.id, 0) + 1
        if number > 1:  # as for one server in a container and one outside: neither may be taken for the other
            writer.id = f"{writer.id}#{number}"
        writer.last_error = errors.get(writer.id)
    return found


def remember(found: Iterable[ApplicationWriter]) -> None:
    """Keeps each writer's last error, and what else it wants to keep. Called outside the window."""
    errors = memory.recall(LAST_ERRORS)
    for writer in found:
        if writer.not_accounted_for is None:  # the others' names are anybody's, and would be ever more
            errors[writer.id] = writer.error
        writer.remember()
    memory.retain(LAST_ERRORS, {id: error for id, error in errors.items() if error})
