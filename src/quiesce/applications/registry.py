"""Finds what the host knows of an application by the application's name in a report."""

from __future__ import annotations

from quiesce.applications import mariadb, openldap, postgresql, redis, sqlite
from quiesce.applications.application import Application
from quiesce.model.reports import WriterReport

APPLICATIONS: dict[str, Application] = {
    **postgresql.APPLICATIONS,
    **mariadb.APPLICATIONS,
    **redis.APPLICATIONS,
    **sqlite.APPLICATIONS,
    **openldap.APPLICATIONS,
}
"""By the field `application` of a WriterReport."""
_OTHER = Application()


def application_of(report: WriterReport) -> Application:
    """The default for an application that has no file here."""
    return APPLICATIONS.get(report.application, _OTHER)
