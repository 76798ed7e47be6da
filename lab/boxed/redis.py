from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from typing import Any

from lab.boxed.server import Server


class Redis(Server):
    """Redis or Valkey."""

    client = """
        import socket
        def connect():
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(60)
            connection.connect("%(socket_directory)s/socket")
            return connection
        def write(connection, key):
            connection.sendall(("*3\\r\\n$3\\r\\nSET\\r\\n$%%d\\r\\n%%s\\r\\n$1\\r\\n1\\r\\n" %% (len(key), key)).encode())
            answer = connection.recv(100)
            assert answer == b"+OK\\r\\n", answer
    """

    def __init__(self, name: str, configuration: dict[str, Any]) -> None:
        super().__init__(name, configuration)
        wanted = configuration["program"]
        self.program = wanted if os.path.exists(f"/usr/bin/{wanted}-server") else "redis"  # Debian 12 has no Valkey
        self.user = self.program
        self._file = f"/etc/{self.program}/{name}.conf"

    def make(self) -> None:
        self.make_directory(self.directory)
        lines = [f"dir {self.directory}", f"port {self.configuration['port']}", f"unixsocket {self.socket_directory}/socket"]
        lines += ["unixsocketperm 777", "daemonize no", "enable-protected-configs yes", *self.configuration["settings"]]
        with open(self._file, "w") as file:
            file.write("\n".join(lines) + "\n")
        shutil.chown(self._file, self.user, self.user)
        os.chmod(f"/etc/{self.program}", 0o755)

    def command(self) -> Sequence[str]:
        return [f"/usr/bin/{self.program}-server", self._file]

    def ask(self, *words: str) -> str:
        return self.run(f"{self.program}-cli", "-s", f"{self.socket_directory}/socket", *words)

    def answers(self) -> bool:
        try:
            return self.ask("ping") == "PONG"
        except RuntimeError:
            return False

    def change(self) -> None:
        renamed = "rename-command CONFIG hidden" in self.configuration["settings"]
        for words in self.configuration["changes"]:
            said = self.ask("hidden" if renamed else words[0], *words[1:])
            assert said in ("OK", "Background saving started"), (words, said)

    def stored(self) -> list[str]:
        return self.ask("--scan").split()

    def after_start(self) -> dict[str, Any]:
        said = self.said()
        return {
            "recovers": re.findall(r"[^\n]*(?:short read|truncat|bad file format)[^\n]*", said, re.IGNORECASE),
            "log": said[-1500:],
        }
