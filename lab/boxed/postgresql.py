from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Any, ClassVar

from lab.boxed.server import NOTES, Server, Session
from quiesce.agent.writers.start_log import recovery_in

(VERSION,) = os.listdir("/usr/lib/postgresql")
PROGRAMS = f"/usr/lib/postgresql/{VERSION}/bin"
ONLY_NEW = "transaction_timeout"
"""A setting that PostgreSQL 17 has, and 15 has not."""


class Postgresql(Server):
    user = "postgres"
    environment: ClassVar = {
        "PGOPTIONS": "-c statement_timeout=0 -c lock_timeout=0 -c search_path=public -c default_transaction_read_only=off"
        + ("" if VERSION < "17" else f" -c {ONLY_NEW}=0")
    }
    client = """
        import psycopg2
        def connect():
            connection = psycopg2.connect(host="%(socket_directory)s", dbname="postgres", options="-c statement_timeout=0")
            connection.autocommit = True
            return connection
        def write(connection, key):
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO entries VALUES (%%s)", (key,))
    """

    def make(self) -> None:
        self.make_directory(self.directory)
        words = [f"{PROGRAMS}/initdb", "-D", self.directory, "-A", "trust", "--no-sync", "--no-instructions"]
        if self.configuration["wal"]:
            words += ["--waldir", self.make_directory(f"{self.configuration['wal']}/{self.name}-wal")]
        if self.configuration["checksums"]:
            words.append("--data-checksums")
        self.run(*words, f"--wal-segsize={self.configuration['segment_mib']}")
        with open(f"{self.directory}/postgresql.conf", "a") as file:
            file.write(f"listen_addresses = ''\nunix_socket_directories = '{self.socket_directory}'\n")
            if self.configuration["settings"].get("wal_level") == "minimal":
                file.write("max_wal_senders = 0\n")
            file.writelines(f"{name} = {value}\n" for name, value in self.configuration["settings"].items())

    def command(self) -> Sequence[str]:
        return [f"{PROGRAMS}/postgres", "-D", self.directory]

    def answers(self) -> bool:
        try:
            self.sql("SELECT 1")
        except RuntimeError:
            return False
        return True

    def sql(self, *statements: str) -> str:
        words = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", self.socket_directory, "-d", "postgres"]
        return self.run(*words, *(word for statement in statements for word in ("-c", statement)))

    def fill(self) -> None:
        space = ""
        if self.configuration["tablespace"]:
            directory = self.make_directory(f"{self.configuration['tablespace']}/{self.name}-space")
            self.sql(f"CREATE TABLESPACE space LOCATION '{directory}'")
            space = " TABLESPACE space"
        self.sql(f"CREATE TABLE entries (k text){space}", "CREATE TABLE others (k int)")

    def change(self) -> None:
        for number, load in enumerate(self.configuration.get("loads", [])):
            self.start_load(number, load)
        for session in self.configuration["sessions"]:
            words = [*self.as_user(), "psql", "-Xq", "-h", self.socket_directory, "-d", "postgres"]
            self.clients.append(Session(words, session.replace("SOCKET", self.socket_directory), "\\echo done"))
        for statement in self.configuration["changes"]:
            if VERSION >= "17" or ONLY_NEW not in statement:
                self.sql(statement)
        self.sql("SELECT pg_reload_conf()")

    def start_load(self, number: int, load: dict[str, Any]) -> None:
        """Clients of pgbench that run a script again and again (`lab/loads.py`)."""
        self.sql(*filter(None, load["set_up"].split(";")))
        script = f"/run/{self.name}.load{number}"
        with open(script, "w") as file:
            file.write(load["script"])
        words = [f"{PROGRAMS}/pgbench", "-n", "-c", str(load["clients"]), "-R", "50", "-T", "900", "-f", script]
        errors = open(f"{NOTES}/{self.name}.load{number}.errors", "wb")
        command = [*self.as_user(), *words, "-h", self.socket_directory, "postgres"]
        self.clients.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors))
        errors.close()

    def stored(self) -> list[str]:
        return self.sql("SELECT k FROM entries").split()

    def after_start(self) -> dict[str, Any]:
        """`redo_starts`, `log_ends`: LSNs; empty if there was no recovery."""
        said = self.said()
        seen = recovery_in(said)
        return {
            "redo_starts": seen.redo_starts or "",
            "log_ends": seen.log_ends or "",
            "recovered": "was not properly shut down" in said and "redo is not required" not in said,
            "log": said[-2500:],
        }
