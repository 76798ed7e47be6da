"""The seal of manifests: an HMAC with a key that only this catalog has.

Images often lie in a directory in which another user can write, as libvirt-qemu's. The seal tells a manifest that quiesce wrote
from one that somebody put there."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from quiesce.catalog import lock
from quiesce.model.errors import QuiesceError

KEY_BYTES = 32


class Seal:
    """The key is in the file `path`, mode 0600. It is made when it is first needed."""

    def __init__(self, path: Path, lock_directory: Path) -> None:
        self._path = path
        self._lock_directory = lock_directory
        self._key = b""

    def of(self, content: bytes) -> str:
        """The seal of `content`, in hexadecimal."""
        return hmac.new(self._read(), content, hashlib.sha256).hexdigest()

    def fits(self, content: bytes, seal: str) -> bool:
        """Whether this is the seal of `content`."""
        return seal.isascii() and hmac.compare_digest(self.of(content), seal)

    def _read(self) -> bytes:
        if not self._key:
            try:
                with lock.wait(self._lock_directory, "seal"):
                    self._key = self._key_of_file() or self._made()
            except OSError as error:
                raise QuiesceError(f"the key of the manifests, {self._path}, cannot be used: {error.strerror}") from error
        return self._key

    def _key_of_file(self) -> bytes:
        """Empty if there is no file. Raises QuiesceError if others may read or replace it."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            found = os.fstat(descriptor)
            ours = found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o077
            key = file.read(KEY_BYTES + 1) if ours and stat.S_ISREG(found.st_mode) else b""
        if len(key) != KEY_BYTES:
            raise QuiesceError(
                f"{self._path} is not a key of {KEY_BYTES} bytes that only you, or root, can read",
                hint="restore it from a backup. If it is removed, quiesce makes a new one, and `quiesce doctor --repair` seals"
                " the manifests of the catalog anew",
            )
        return key

    def _made(self) -> bytes:
        """Written under another name first, so that a power failure leaves no half of a key."""
        key, new = secrets.token_bytes(KEY_BYTES), self._path.with_name(f"{self._path.name}.new")
        new.unlink(missing_ok=True)
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(key)
            file.flush()
            os.fsync(descriptor)
        new.replace(self._path)
        return key
