"""Builds guest images: Debian 13 with PostgreSQL 17, qemu-guest-agent and python3, with a root disk and a data disk; the same
with all other applications that quiesce has a writer for, none of them running; and Debian 12, with what other kinds of disks
need."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab import cache

SUITE = "trixie"
PACKAGES = (
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "kmod",
    "linux-image-cloud-amd64",
    "postgresql-17",
    "procps",
    "psmisc",
    "python3",
    "python3-psycopg2",
    "qemu-guest-agent",
    "systemd-sysv",
    "udev",
    "zstd",
)

APPLICATIONS = (
    "haproxy",
    "ldap-utils",
    "mariadb-server",
    "nginx-light",
    "pgbouncer",
    "podman",
    "crun",
    "python3-ldap",
    "python3-pika",
    "python3-pymysql",
    "rabbitmq-server",
    "redis-server",
    "slapd",
    "valkey-server",
)
OLD_SUITE = "bookworm"
OLD_PACKAGES = (
    *(package for package in PACKAGES if package != "postgresql-17"),
    "apparmor",
    "btrfs-progs",
    "lvm2",
    "postgresql-15",
    "thin-provisioning-tools",
    "xfsprogs",
)
OLD_SERVERS = ("iproute2", "mariadb-server", "postgresql-15", "procps", "python3", "python3-psycopg2", "python3-pymysql",
               "redis-server", "util-linux")  # fmt: skip
"""Of Debian 12: no guest, but programs for `lab.box`."""
SERVICES = ("haproxy", "mariadb", "nginx", "pgbouncer", "rabbitmq-server", "epmd", "redis-server", "slapd", "valkey-server")

CUSTOMIZE = r"""
set -eu
cd "$1"
echo quiesce-lab >etc/hostname
printf '%s\n' 'LABEL=root / ext4 defaults 0 0' 'LABEL=data /var/lib/postgresql ext4 defaults 0 0' >etc/fstab
printf '%s\n' virtio_pci virtio_blk ext4 crc32c >etc/initramfs-tools/modules
sed -i -e 's/^MODULES=.*/MODULES=list/' -e 's/^COMPRESS=.*/COMPRESS=zstd/' etc/initramfs-tools/initramfs.conf
rm usr/share/initramfs-tools/hooks/udev usr/share/initramfs-tools/scripts/*/udev  # the kernel makes /dev/vda by itself
chroot . update-initramfs -u -k all
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-pcrphase.service getty@tty1.service serial-getty@ttyS0.service systemd-networkd.service \
    systemd-networkd-wait-online.service systemd-resolved.service systemd-timesyncd.service systemd-binfmt.service \
    proc-sys-fs-binfmt_misc.automount systemd-udev-load-credentials.service systemd-hostnamed.socket systemd-logind.service \
    modprobe@drm.service modprobe@efi_pstore.service modprobe@configfs.service modprobe@fuse.service \
    sys-kernel-tracing.mount sys-kernel-debug.mount sys-kernel-config.mount sys-fs-fuse-connections.mount dev-mqueue.mount \
    dev-hugepages.mount run-lock.mount systemd-random-seed.service systemd-sysctl.service systemd-modules-load.service \
    systemd-user-sessions.service systemd-update-utmp.service systemd-update-utmp-runlevel.service; do
    ln -sf /dev/null "etc/systemd/system/$unit"
done
trigger=etc/systemd/system/systemd-udev-trigger.service.d
mkdir -p "$trigger" etc/systemd/journald.conf.d var/log/journal
printf '[Service]\nExecStart=\nExecStart=-udevadm trigger --action=add%s\n' \
    "$(printf ' --subsystem-nomatch=%s' tty vc mem memory cpu bdi workqueue)" >"$trigger/lab.conf"
printf '[Journal]\nStorage=persistent\nForwardToConsole=no\n' >etc/systemd/journald.conf.d/lab.conf
cat >>etc/postgresql/17/main/postgresql.conf <<PG
shared_buffers = 64MB
log_checkpoints = on
log_line_prefix = '%m [%p] '
PG
for unit in %SERVICES%; do
    chroot . systemctl disable -q "$unit" || true
done
rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/man/* usr/share/locale/*
touch etc/.updated var/.updated  # nothing to be brought up to date at the first boot (ConditionNeedsUpdate)
"""

ZSTD = b"\x28\xb5\x2f\xfd"
ROOT_MIB = 1800
DATA_MIB = 1200


@dataclass(frozen=True)
class Image:
    """A cached guest image. Nobody writes its files again; machines run on overlays of them."""

    directory: Path

    @property
    def disks(self) -> dict[str, Path]:
        return {"vda": self.directory / "root.qcow2", "vdb": self.directory / "data.qcow2"}

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def vmlinux(self) -> Path:
        """The same kernel, unpacked if it can be. Firmware cannot start it; without firmware QEMU can (PVH)."""
        return self.directory / "vmlinux"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd.img"

    @property
    def key(self) -> str:
        return self.directory.name


def build(*, applications: bool = False) -> Image:
    """A guest image, from the cache or built in one to five minutes. Raises subprocess.CalledProcessError."""
    recipe = _Recipe(
        (*PACKAGES, *APPLICATIONS) if applications else PACKAGES,
        CUSTOMIZE.replace("%SERVICES%", " ".join(SERVICES) if applications else ""),
        ROOT_MIB + (1600 if applications else 0),
    )
    return _built(recipe, "Debian 13 guest image" + (" with all applications" if applications else ""))


def old() -> Image:
    """A guest image with Debian 12 and PostgreSQL 15, for XFS, btrfs, LVM and AppArmor. As `build`."""
    customize = CUSTOMIZE.replace("%SERVICES%", "").replace("postgresql/17", "postgresql/15")
    return _built(_Recipe(OLD_PACKAGES, customize, ROOT_MIB, OLD_SUITE), "Debian 12 guest image")


def _built(recipe: _Recipe, what: str) -> Image:
    path = cache.root() / f"image-{recipe.key}"
    with cache.entry(path) as directory:
        if directory is not None:
            print(f"lab: building the {what} (once, one to five minutes)", file=sys.stderr, flush=True)
            _build_into(directory, recipe)
    return Image(path)


def old_servers() -> Path:
    """A raw ext4 image with Debian 12 and its servers, without a kernel: from the cache, or built in one to two minutes. Raises
    subprocess.CalledProcessError."""
    key = hashlib.sha256("\0".join((OLD_SUITE, *OLD_SERVERS)).encode()).hexdigest()[:16]
    path = cache.root() / f"servers-{key}"
    with cache.entry(path) as directory:
        if directory is not None:
            print("lab: installing Debian 12's servers (once, one to two minutes)", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="quiesce-lab-", dir="/var/tmp") as scratch_name:
                tree = Path(scratch_name) / "tree"
                _mmdebstrap(tree, Path("/bin/true"), OLD_SERVERS, OLD_SUITE)
                _run("mke2fs", "-q", "-t", "ext4", "-d", tree, directory / "root.raw", f"{ROOT_MIB}M")
    return path / "root.raw"


@dataclass(frozen=True)
class _Recipe:
    packages: tuple[str, ...]
    customize: str
    root_mib: int
    suite: str = SUITE

    @property
    def key(self) -> str:
        parts = (self.suite, *self.packages, self.customize, str(self.root_mib), str(DATA_MIB))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build_into(directory: Path, recipe: _Recipe) -> None:
    with tempfile.TemporaryDirectory(prefix="quiesce-lab-", dir="/var/tmp") as scratch_name:
        scratch = Path(scratch_name)
        tree = scratch / "tree"
        customize = scratch / "customize"
        customize.write_text(f"#!/bin/sh\n{recipe.customize}")
        customize.chmod(0o755)
        _mmdebstrap(tree, customize, recipe.packages, recipe.suite)
        shutil.copy(next((tree / "boot").glob("vmlinuz-*")), directory / "vmlinuz")
        shutil.copy(next((tree / "boot").glob("initrd.img-*")), directory / "initrd.img")
        (directory / "vmlinux").write_bytes(_unpacked((directory / "vmlinuz").read_bytes()))
        data = scratch / "data"
        (tree / "var/lib/postgresql").rename(data)
        (tree / "var/lib/postgresql").mkdir()
        owner = data.stat()
        shutil.chown(tree / "var/lib/postgresql", owner.st_uid, owner.st_gid)
        for name, source, size in (("root", tree, recipe.root_mib), ("data", data, DATA_MIB)):
            raw = scratch / f"{name}.raw"
            _run("mke2fs", "-q", "-t", "ext4", "-L", name, "-d", source, raw, f"{size}M")
            _run("qemu-img", "convert", "-O", "qcow2", raw, directory / f"{name}.qcow2")
            raw.unlink()
    for file in directory.iterdir():
        file.chmod(0o644)


def _unpacked(kernel: bytes) -> bytes:
    """The ELF image in a bzImage that is compressed by zstd (Linux's Documentation/arch/x86/boot.rst: `setup_sects`,
    `payload_offset`, `payload_length`); four bytes at its end are the size. Else the bzImage itself, which starts more
    slowly."""
    offset, length = struct.unpack_from("<II", kernel, 0x248)
    start = (kernel[0x1F1] + 1) * 512 + offset
    payload = kernel[start : start + length - 4]
    if not payload.startswith(ZSTD):
        return kernel
    return subprocess.run(["zstd", "-dqc"], input=payload, stdout=subprocess.PIPE, check=True, timeout=60).stdout


def _mmdebstrap(tree: Path, customize: Path, packages: tuple[str, ...], suite: str = SUITE) -> None:
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources = "".join(f"deb [signed-by={keyring}] {_mirror()} {name} main\n" for name in (suite, f"{suite}-updates"))
    options = [f"--aptopt={line}" for line in _apt_acquire_options()]
    log = tree.parent / "mmdebstrap.log"
    with log.open("wb") as output:
        result = subprocess.run(
            ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(packages)}", *options,
             f"--customize-hook={shlex.quote(str(customize))} \"$1\"", suite, str(tree), "-"],
            input=sources.encode(), stdout=output, stderr=subprocess.STDOUT, check=False, timeout=1500,
        )  # fmt: skip
    if result.returncode:
        sys.stderr.write(log.read_text(errors="replace")[-8000:])
        result.check_returncode()


def _mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL) $(RELEASE)", "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for line in listing.splitlines():
        uri, label, release = line.rsplit(" ", 2)
        if label == "Debian" and "backports" not in release:
            return uri
    raise RuntimeError("found no Debian mirror in this machine's apt sources")


def _apt_acquire_options() -> list[str]:
    """The Acquire settings of this machine's apt (proxies, validity checks); mmdebstrap does not read them by itself."""
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout
    return [line for line in dump.splitlines() if not line.endswith('"";')]


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, timeout=600, stdout=subprocess.DEVNULL)
