from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import Any

from lab.boxed.server import Server, Session
from quiesce.agent.writers.start_log import innodb_recovery_in


class Mariadb(Server):
    user = "mysql"
    client = """
        import pymysql
        def connect():
            return pymysql.connect(unix_socket="%(socket_directory)s/socket", user="root", database="shop", autocommit=True)
        def write(connection, key):
            with connection.cursor() as cursor:
                for engine in TABLES:
                    cursor.execute("INSERT INTO " + engine + " VALUES (%%s)", (key,))
    """

    def __init__(self, name: str, configuration: dict[str, Any]) -> None:
        super().__init__(name, configuration)
        self.client = self.client.replace("TABLES", repr(configuration["engines"]))

    def make(self) -> None:
        self.make_directory(self.directory)
        self.make_directory(self.socket_directory)
        lines = [f"datadir={self.directory}", f"socket={self.socket_directory}/socket", "skip-networking", "user=mysql"]
        lines += [f"pid-file={self.socket_directory}/pid", "innodb_buffer_pool_size=16M", "innodb_log_file_size=16M"]
        for option, place in self.configuration["places"].items():
            directory = self.make_directory(f"{place}/{self.name}-{option}")
            lines.append(f"{option}={directory}" + ("/log" if option == "log_bin" else ""))
        settings = dict(self.configuration["settings"])
        if self.configuration["table_place"]:
            settings.pop("innodb_file_per_table", None)  # else there is no DATA DIRECTORY
        lines += [f"{name}={value}" for name, value in settings.items()]
        if "ARCHIVE" in self.configuration["engines"]:
            lines.append("plugin_load_add=ha_archive")
        with open(f"/etc/{self.name}.cnf", "w") as file:
            file.write("[mariadbd]\n" + "\n".join(lines) + "\n")
        options = ["--user=mysql", "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        words = ["mariadb-install-db", f"--defaults-file=/etc/{self.name}.cnf", *options]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)

    def command(self) -> Sequence[str]:
        return ["/usr/sbin/mariadbd", f"--defaults-file=/etc/{self.name}.cnf"]

    def answers(self) -> bool:
        try:
            self.sql("SELECT 1")
        except RuntimeError:
            return False
        return True

    def sql(self, statement: str) -> str:
        return self.run(
            "mariadb", "--no-defaults", "-N", "-B", "-u", "root", "-S", f"{self.socket_directory}/socket", "-e", statement
        )

    def fill(self) -> None:
        self.sql("CREATE DATABASE shop")
        where = ""
        if self.configuration["table_place"]:
            directory = self.make_directory(f"{self.configuration['table_place']}/{self.name}-table")
            where = f" DATA DIRECTORY='{directory}'"
        for engine in self.configuration["engines"]:
            self.sql(
                f"CREATE TABLE shop.{engine} (k VARCHAR(60) NOT NULL) ENGINE={engine}{where if engine == 'InnoDB' else ''}"
            )

    def change(self) -> None:
        for session in self.configuration["sessions"]:
            client = ["mariadb", "--no-defaults", "-n", "-N", "-u", "root", "-S", f"{self.socket_directory}/socket", "shop"]
            self.clients.append(Session([*self.as_user(), *client], f"{session};", "SELECT 'done';"))
        for statement in self.configuration["changes"]:
            self.sql(statement)

    def stored(self) -> list[str]:
        """The keys that every table has."""
        tables = [set(self.sql(f"SELECT k FROM shop.{engine}").split()) for engine in self.configuration["engines"]]
        return sorted(set.intersection(*tables))

    def after_start(self) -> dict[str, Any]:
        said = self.said()
        recovers = "Starting crash recovery|crash recovery from checkpoint LSN|Starting final batch|tc.log|starting recovery"
        recovers += "|rolled back|rolling back|Recovering after a crash|marked as crashed"
        return {
            "recovers": [line for line in said.splitlines() if re.search(recovers, line, re.IGNORECASE)],
            "log_ends": innodb_recovery_in(said).ends or "",
            "log": said[-2500:],
        }
