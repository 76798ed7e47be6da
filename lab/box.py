"""Runs a program among a guest image's files, with the kernel of this host.

A box has its own processes, mounts, network and control groups, and two disks of its own. Servers and the agent's code run
in it as in a guest, at this host's speed; there is no systemd in it. All of it ends with the program, or with the caller.

    /srv, /data2    ext4 on two disks: what a checkpoint has
    /mem            a tmpfs: what it does not have
    /copy           a tmpfs, for a copy of the disks
    /quiesce        the files given to `run`

Nothing of this host's own disks is mounted in it: what is frozen in a box must never be the host's.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

DISKS = ("srv", "data2")
DISK_SIZE = "700M"
MEMORY = ("run", "tmp", "mem", "copy")
INSIDE, GIVEN = "--inside", "given"
GROUPS_GONE_S = 10.0
"""Longest wait until the last process of a box has ended, in seconds."""


def root_image(debian: int) -> Path:
    """Debian 12 with its servers, or 13: the root disk of the guest image with all applications. A raw file, from the cache or
    made now."""
    from lab import cache
    from lab.image import build, old_servers

    if debian == 12:
        return old_servers()
    image = build(applications=True)
    path = cache.root() / f"raw-{image.key.removeprefix('image-')}"
    with cache.entry(path) as directory:
        if directory is not None:
            raw = directory / "root.raw"
            subprocess.run(["qemu-img", "convert", "-O", "raw", image.disks["vda"], raw], check=True, timeout=300)
            cache.prune(path.with_name("raw-*"), keep=2)
    return path / "root.raw"


def run(
    words: Sequence[str], standard_input: str, files: Mapping[str, bytes], *, debian: int = 13, timeout_s: float = 180
) -> str:
    """Runs a program of the image's, by its path. Returns its standard output. Raises subprocess.CalledProcessError, which has
    the standard error, and subprocess.TimeoutExpired. `files`: by their paths below /quiesce."""
    namespaces = ["--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"]
    image = root_image(debian)
    with tempfile.TemporaryDirectory(prefix="quiesce-box-") as scratch, _control_group() as group:
        for name, content in files.items():
            path = Path(scratch, GIVEN, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        enter = f'echo $$ >"{group}/cgroup.procs"; exec "$@"'
        inside = [sys.executable, __file__, INSIDE, str(image), scratch, *words]
        return subprocess.run(
            ["sh", "-c", enter, "sh", "unshare", *namespaces, *inside],
            input=standard_input,
            capture_output=True,
            text=True,
            check=True,
            timeout=timeout_s,
        ).stdout


@contextmanager
def _control_group() -> Iterator[Path]:
    """A control group for one box. Whatever the box made below it is removed, too."""
    group = _hierarchy() / f"quiesce-box-{secrets.token_hex(4)}"
    group.mkdir()
    try:
        yield group
    finally:
        deadline = time.monotonic() + GROUPS_GONE_S
        for directory in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            _remove_group(directory, deadline)
        _remove_group(group, deadline)


def _remove_group(directory: Path, deadline: float) -> None:
    while True:
        try:
            directory.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _hierarchy() -> Path:
    """Where this host has control groups of version 2."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise RuntimeError("this host has no control groups of version 2")


def _inside(image: str, scratch: Path, words: Sequence[str]) -> None:
    """Makes the box around this process, and becomes the program."""

    def mount(*words: str | Path) -> None:
        subprocess.run(["mount", *words], check=True)

    mount("--make-rprivate", "/")
    given = {path.relative_to(scratch / GIVEN): path.read_bytes() for path in (scratch / GIVEN).rglob("*") if path.is_file()}
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", scratch)
    tree, upper, work, root = (scratch / name for name in ("tree", "upper", "work", "root"))
    for directory in (tree, upper, work, root):
        directory.mkdir()
    mount("-o", "loop,ro,noload", image, tree)
    mount("-t", "overlay", "-o", f"lowerdir={tree},upperdir={upper},workdir={work}", "overlay", root)
    for name in (*DISKS, *MEMORY, "quiesce", ".old"):
        (root / name).mkdir(exist_ok=True)
    for name in DISKS:
        disk = scratch / f"{name}.img"
        subprocess.run(["truncate", "-s", DISK_SIZE, disk], check=True)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", disk], check=True)
        mount("-o", "loop", disk, root / name)
    for name in MEMORY:
        mount("-t", "tmpfs", "-o", "mode=1777" if name == "tmp" else "mode=0755", "tmpfs", root / name)
    mount("-t", "proc", "proc", root / "proc")
    mount("-t", "sysfs", "-o", "ro", "sysfs", root / "sys")
    mount("-t", "cgroup2", "cgroup2", root / "sys/fs/cgroup")
    mount("--bind", "/dev", root / "dev")
    mount("-t", "tmpfs", "tmpfs", root / "dev/shm")
    for path, content in given.items():
        (root / "quiesce" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "quiesce" / path).write_bytes(content)
    os.chdir(root)
    subprocess.run(["pivot_root", ".", ".old"], check=True)
    os.chroot(".")
    subprocess.run(["umount", "--lazy", "/.old"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.execve(words[0], list(words), {"PATH": "/usr/sbin:/usr/bin", "LANG": "C.UTF-8", "HOME": "/root"})  # noqa: S606


if __name__ == "__main__" and sys.argv[1] == INSIDE:
    _inside(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
