"""Virtual machines as context managers.

    with Machine(build()) as machine:            # boots: 30 to 60 s without KVM
        machine.run("psql -c 'SELECT 1'")
    with Machine(image, start_from=saved_machine) as machine:   # resumes a saved RAM image: about 2 s
    with Machine(image, firmware=True) as machine:   # boots through UEFI, with variables of its own, and has a TPM 2.0

The process that owns a machine holds a lock in the machine's directory. If it is killed, the next process that makes a machine
removes what it left.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import secrets
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import libvirt
import libvirt_qemu

from lab import cache, emulation
from lab.emulation import EMULATED, QUICK, kvm_works
from lab.image import Image
from lab.ram import SavedMachine, rename_in_ram_image

PREFIX = "quiesce-lab-"
LOCK = "owner.lock"
"""Held by the process that a machine's directory belongs to."""
MEMORY_MIB = 1024
"""Enough for all applications with their clients: with less, a guest reads its own programs again and again."""
URI = "qemu:///system"
used_names: set[str] = set()
"""Names of all machines this process made."""
entered: dict[str, Machine] = {}
"""Those that are entered now, by name."""
POOLS_GONE_S = 60.0
"""Longest wait until no pool of ours is left, in seconds."""

TPM_STATES = Path("/var/lib/libvirt/swtpm")
"""libvirt's directory of TPM states. Each machine has a directory in it, named by its UUID."""

tpm_states_before = set(TPM_STATES.glob("*"))
"""The TPM states that existed when this process started."""

libvirt.registerErrorHandler(lambda *_: None, None)  # errors are raised; libvirt need not print them, too


@dataclass(frozen=True)
class Finished:
    """The result of a command in the guest."""

    returncode: int
    stdout: str
    stderr: str


class GuestCommandError(Exception):
    def __init__(self, command: str, finished: Finished) -> None:
        super().__init__(f"{command!r} ended with {finished.returncode}: {finished.stderr.strip()[-2000:]}")
        self.finished = finished


def saved(name: str, image: Image, prepare: Callable[[Machine], None], start_from: SavedMachine | None = None) -> SavedMachine:
    """The machine that `prepare` makes: from the cache or, if it is not there, booted, prepared and saved now. `name` must be
    another one if `prepare` makes another machine."""
    definition = b"".join(Path(file).read_bytes() for file in (__file__, emulation.__file__))
    recipe = hashlib.sha256(definition).hexdigest()[:8]
    path = cache.root() / f"saved-{image.key.removeprefix('image-')}-{recipe}-{name}"
    with cache.entry(path) as directory:
        if directory is not None:
            print(f"lab: booting a machine to be resumed by later tests ({name})", file=sys.stderr, flush=True)
            with Machine(image, start_from=start_from) as machine:
                prepare(machine)
                machine.save_to(directory)
            if "-" in name:  # a name with a hash: every change of the content makes a new entry
                cache.prune(path.with_name(path.name.rpartition("-")[0] + "-*"), keep=2)
    return SavedMachine(path)


class Machine:
    """One virtual machine. Entering it starts it; leaving it removes it, its definition and its files."""

    def __init__(
        self,
        image: Image,
        *,
        start_from: SavedMachine | None = None,
        customize: Callable[[str], str] = lambda xml: xml,
        boot: bool = True,
        firmware: bool = False,
        memory_mib: int = MEMORY_MIB,
        more_disks: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """`more_disks`: empty ones, target and size in MiB."""
        self.image = image
        self.name = new_name()
        self.uuid = str(uuid.uuid4())
        self.directory = cache.root() / "machines" / self.name
        self._start_from = start_from
        self._customize = customize
        self._boot = boot
        self._firmware = firmware
        self._memory_mib = memory_mib
        self._more_disks = more_disks

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        with self._stack:
            self.directory.parent.mkdir(exist_ok=True)
            remove_abandoned()
            self.directory.mkdir(mode=0o755)
            self._stack.enter_context(owned(self.directory))
            self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.connection = libvirt.open(URI)
            self._stack.callback(self._disconnect)
            self._stack.callback(_remove_domain, self.name)
            base = self._start_from.directory if self._start_from else None
            for target, file in self.image.disks.items():
                _overlay(base / f"{target}.qcow2" if base else file, self.disk(target))
            for target, mib in self._more_disks.items():
                subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.disk(target), f"{mib}M"], check=True)
            self.domain = self.connection.defineXML(self._definition())
            if self._start_from:
                self._resume(self._start_from)
            elif self._boot:
                self.domain.create()
            if self._start_from or self._boot:
                self.wait_for_guest()
            entered[self.name] = self
            self._stack.callback(entered.pop, self.name)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None:
            print(self.explanation(), file=sys.stderr)
        self._stack.close()

    def reconnect(self) -> None:
        """Connects again after libvirtd was restarted."""
        self._disconnect()
        self.connection = libvirt.open(URI)
        self.domain = self.connection.lookupByName(self.name)

    def _disconnect(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self.connection.close()

    def disk(self, target: str) -> Path:
        return self.directory / f"{target}.qcow2"

    @property
    def nvram(self) -> Path:
        """The UEFI variables of a machine with firmware."""
        return self.directory / "nvram.fd"

    def explanation(self) -> str:
        """The guest's console and the agent's log, for a test that failed."""
        said = f"--- console of {self.name} ---\n{self.console()[-3000:]}"
        with contextlib.suppress(Exception):
            log = self.run("journalctl -b -u quiesce-agent --no-pager | tail -50").stdout
            said += f"\n--- agent log of {self.name} ---\n{log}"
        return said

    def console(self) -> str:
        try:
            return (self.directory / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    # -- the guest, through qemu-guest-agent

    def wait_for_guest(self, timeout: float = 240) -> None:
        """Waits until qemu-guest-agent answers. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._guest_agent("guest-ping", timeout=5)
            except libvirt.libvirtError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.name} did not come up in {timeout:g} s") from None
                time.sleep(0.2)
            else:
                return

    def run(self, command: str, *, timeout: float = 60, check: bool = True, stdin: bytes | None = None) -> Finished:
        """Runs a shell command as root in the guest and waits for it."""
        pid = self.spawn(command, stdin=stdin, capture=True)
        deadline = time.monotonic() + timeout
        pause = 0.01
        while True:
            status = self._guest_agent("guest-exec-status", pid=pid)
            if status["exited"]:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{command!r} runs longer than {timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.3)
        finished = Finished(
            status.get("exitcode", -status.get("signal", 0)),
            base64.b64decode(status.get("out-data", "")).decode(errors="replace"),
            base64.b64decode(status.get("err-data", "")).decode(errors="replace"),
        )
        if check and finished.returncode:
            raise GuestCommandError(command, finished)
        return finished

    def spawn(self, command: str, *, stdin: bytes | None = None, capture: bool = False) -> int:
        """Starts a shell command as root in the guest; returns its process id there."""
        arguments: dict[str, Any] = {"path": "/bin/sh", "arg": ["-c", command], "capture_output": capture}
        if stdin is not None:
            arguments["input_data"] = base64.b64encode(stdin).decode()
        return int(self._guest_agent("guest-exec", **arguments)["pid"])

    def sql(self, statement: str, *, database: str = "postgres", timeout: float = 60) -> str:
        """Runs SQL as postgres with psql and returns its unaligned rows."""
        command = f"runuser -u postgres -- psql -X -q -A -t -v ON_ERROR_STOP=1 -d {database} -f -"
        return self.run(command, stdin=statement.encode(), timeout=timeout).stdout.strip()

    def write_file(self, path: str, content: bytes) -> None:
        handle = self._guest_agent("guest-file-open", path=path, mode="w")
        for start in range(0, len(content), 48 * 1024):
            piece = base64.b64encode(content[start : start + 48 * 1024]).decode()
            self._guest_agent("guest-file-write", handle=handle, buf_b64=piece)
        self._guest_agent("guest-file-close", handle=handle)

    def wait_for_postgresql(self, timeout: float = 120) -> None:
        """Raises TimeoutError. Each try costs an emulated guest a second, so it begins when the server listens."""
        tries = "test -S /run/postgresql/.s.PGSQL.5432 && runuser -u postgres -- psql -X -q -c 'SELECT 1'"
        waits = f"until {tries}; do sleep 0.2; done >/dev/null 2>&1"
        if self.run(f"timeout {timeout} sh -c {shlex.quote(waits)}", check=False, timeout=timeout + 30).returncode:
            raise TimeoutError("PostgreSQL did not come up in the guest")

    def _guest_agent(self, command: str, *, timeout: int = 30, **arguments: Any) -> Any:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = json.dumps({"execute": command, "arguments": named})
        return json.loads(libvirt_qemu.qemuAgentCommand(self.domain, request, timeout, 0))["return"]

    # -- saving and resuming

    def save_to(self, directory: Path) -> None:
        """Stops the machine and leaves its memory and disks in `directory`."""
        self.run("sync")
        definition = self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        self.domain.save(str(directory / "ram"))
        for target in self.image.disks:
            shutil.move(self.disk(target), directory / f"{target}.qcow2")
        for file in directory.iterdir():
            file.chmod(0o644)
            shutil.chown(file, "root", "root")
        (directory / "domain.xml").write_text(definition)
        shutil.copy(self._note_identity(directory), directory / "saved-as.json")

    def _resume(self, source: SavedMachine) -> None:
        with cache.locked(source.directory / "resume.lock"):
            rename_in_ram_image(source.ram, source.identity, {"name": self.name, "uuid": self.uuid})
            self._note_identity(source.directory)
            self.connection.restore(str(source.ram))
        self.domain = self.connection.lookupByName(self.name)

    def _note_identity(self, directory: Path) -> Path:
        file = directory / "identity.json"
        file.write_text(json.dumps({"name": self.name, "uuid": self.uuid}))
        return file

    def _definition(self) -> str:
        if not self._start_from:
            return self._customize(self._xml())
        xml = self._start_from.definition
        for key, value in json.loads((self._start_from.directory / "saved-as.json").read_text()).items():
            xml = xml.replace(value, getattr(self, key))
        return self._customize(xml)

    def _xml(self) -> str:
        disks = "".join(
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>"
            f"<source file='{self.disk(target)}'/><target dev='{target}' bus='virtio'/></disk>"
            for target in (*self.image.disks, *self._more_disks)
        )
        kind, processors = ("kvm", "<vcpu>2</vcpu><cpu mode='maximum'/>") if kvm_works() else ("qemu", EMULATED)
        system, kernel, tpm = "<os>", self.image.vmlinux, ""
        if self._firmware:
            insecure = "<firmware><feature enabled='no' name='secure-boot'/></firmware>"  # else libvirt takes any firmware
            kernel = self.image.kernel
            system = f"<os firmware='efi'>{insecure}<nvram>{self.nvram}</nvram>"
            tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
        return f"""
<domain type='{kind}'>
  <name>{self.name}</name><uuid>{self.uuid}</uuid><genid/>
  <memory unit='MiB'>{self._memory_mib}</memory>
  {system}<type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{self.image.initrd}</initrd>
    <cmdline>root=/dev/vda rw console=ttyS0 {QUICK}</cmdline></os>
  <features><acpi/></features>{processors}<clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    {disks}
    <controller type='virtio-serial' index='0'/><controller type='usb' model='none'/><memballoon model='none'/>{tpm}
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <serial type='file'><source path='{self.directory}/console.log'/><target port='0'/></serial>
  </devices>
</domain>"""


def new_name() -> str:
    """A name that no other machine has. Anything that still has it at the end of the process was left behind."""
    name = PREFIX + secrets.token_hex(4)
    used_names.add(name)
    return name


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """The directory belongs to this process, so that no `remove_abandoned` of another process takes it."""
    with (directory / "owner.new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (directory / "owner.new").rename(directory / LOCK)
        yield


def remove_abandoned() -> None:
    """Removes machines whose owner died."""
    for directory in (cache.root() / "machines").glob(f"{PREFIX}*"):
        # Without a lock it is being made, or removed.
        with contextlib.suppress(OSError), (directory / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_domain(directory.name)
            shutil.rmtree(directory, ignore_errors=True)


def left_behind() -> list[str]:
    """Domains, pools and files that machines of this process left. The test suite asserts that there are none."""
    connection = libvirt.open(URI)
    try:
        tpm_states = set(TPM_STATES.glob("*")) - tpm_states_before  # listed before the domains, which may be removed meanwhile
        domains = {domain.UUIDString(): domain.name() for domain in connection.listAllDomains()}
        left = [name for name in domains.values() if name in used_names]
        left += _pools_left(connection)
    finally:
        connection.close()
    left += [str(path) for path in tpm_states if path.name not in domains]
    return left + [str(path) for path in (cache.root() / "machines").glob("*") if path.name in used_names]


def _pools_left(connection: libvirt.virConnect) -> list[str]:
    """The pools that are still there after at most POOLS_GONE_S. Pools are removed when no process uses any
    (quiesce.storage.pools), and tests in other processes may be using one."""
    deadline = time.monotonic() + POOLS_GONE_S
    while True:
        left = []
        for pool in connection.listAllStoragePools():
            with contextlib.suppress(libvirt.libvirtError):  # gone meanwhile
                xml = pool.XMLDesc(0)
                left += [pool.name()] if any(used in xml for used in used_names) else []
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _remove_domain(name: str) -> None:
    """Removes a domain, on a connection of its own: a test may have killed the daemon of the machine's connection."""
    with contextlib.suppress(libvirt.libvirtError):
        connection = libvirt.open(URI)
        try:
            domain = connection.lookupByName(name)
            with contextlib.suppress(libvirt.libvirtError):
                domain.destroy()
            flags = libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_TPM
            flags |= libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            with contextlib.suppress(libvirt.libvirtError):
                domain.undefineFlags(flags)
        finally:
            connection.close()


def _overlay(base: Path, path: Path) -> None:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(path)],
        check=True, timeout=60,
    )  # fmt: skip
