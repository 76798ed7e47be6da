"""Builds the guest agent: one file, a zipapp with our own code and the pure-Python database clients that it needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import quiesce
from quiesce.model.errors import QuiesceError, RefusedError

OWN = (
    "__init__.py",
    "codec.py",
    "agent",
    "wire",
    "model/__init__.py",
    "model/grades.py",
    "model/reports.py",
    "model/starts.py",
    "writer.py",
    "testing",
)
CARRIED = ("pg8000", "scramp", "asn1crypto", "dateutil", "six", "pymysql")
INTERPRETER = "/usr/bin/python3"
_TIME = (2000, 1, 1, 0, 0, 0)


def locked() -> dict[str, str]:
    """The version of each library that the agent carries, by the name of its distribution."""
    lines = (Path(__file__).parent / "carried.lock").read_text().splitlines()
    return dict(line.split()[0].split("==") for line in lines if "==" in line)


def build() -> bytes:
    """The agent's file. The same sources give the same bytes. Raises RefusedError if a library that it carries has another
    version than the one that was tried, and whose hash is known."""
    for name, version in locked().items():
        if (found := importlib.metadata.version(name)) != version:
            raise RefusedError(
                f"the agent is made with {name} {version}; {found} is installed",
                hint=f"install that version: pip install {name}=={version}",
            )
    content = io.BytesIO()
    content.write(f"#!{INTERPRETER}\n".encode())
    with zipfile.ZipFile(content, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(_files()):
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    return content.getvalue()


def write_archive(path: Path) -> int:
    """Writes the agent to a file, completely or not at all. Returns its size in bytes. Raises QuiesceError."""
    content = build()
    new = path.with_name(path.name + ".new")
    try:
        new.write_bytes(content)
        new.chmod(0o755)
        new.replace(path)
    except OSError as error:
        raise QuiesceError(
            f"the agent cannot be written to {path}: {error.strerror}", hint="name a file in a directory that you may write"
        ) from error
    return len(content)


def _files() -> Iterator[tuple[str, bytes]]:
    yield "__main__.py", b"import runpy\nrunpy.run_module('quiesce.agent', run_name='__main__')\n"
    root = Path(quiesce.__file__).parent
    for name in OWN:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield f"quiesce/{file.relative_to(root)}", file.read_bytes()
    for name in CARRIED:
        spec = importlib.util.find_spec(name)
        assert spec is not None  # quiesce depends on these packages
        assert spec.origin is not None
        origin = Path(spec.origin)
        for file in sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]:
            above = origin.parent.parent if origin.name == "__init__.py" else origin.parent
            yield str(file.relative_to(above)), file.read_bytes()
    # pg8000 and scramp ask for their own versions when they are imported.
    for name in ("pg8000", "scramp"):
        metadata = importlib.metadata.metadata(name)
        stub = f"Metadata-Version: 2.1\nName: {name}\nVersion: {metadata['Version']}\n"
        yield f"{name}-{metadata['Version']}.dist-info/METADATA", stub.encode()
