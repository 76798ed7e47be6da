"""Adds compiled code, for the guest's own Python, to the agent's file. Without it each conversation would compile its writers.

The source stays in the file: after an upgrade of Python the compiled code is ignored, and the agent is only slower to start.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import zipfile


def precompile(archive_path: str) -> None:
    """Rewrites the archive, completely or not at all. Raises OSError, SyntaxError."""
    rewritten = archive_path + ".compiled"
    with open(archive_path, "rb") as file:
        first_line = file.readline()
    with open(rewritten, "wb") as file:
        file.write(first_line)
        with zipfile.ZipFile(archive_path) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
            for info in source.infolist():
                if info.filename.endswith(".pyc"):
                    continue  # compiled for another Python
                content = source.read(info)
                target.writestr(info, content)
                if info.filename.endswith(".py") and info.filename != "__main__.py":
                    target.writestr(info.filename + "c", _compiled(content, f"{archive_path}/{info.filename}"))
        file.flush()
        os.fsync(file.fileno())
    os.chmod(rewritten, 0o755)
    os.replace(rewritten, archive_path)


def _compiled(source: bytes, name: str) -> bytes:
    """Code as py_compile writes it with an unchecked hash: source and code are always replaced together."""
    code = compile(source, name, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source) + marshal.dumps(code)
