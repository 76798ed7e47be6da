"""Writes to a guest's channel whose QEMU has just been killed, and looks what becomes of libvirtd.

Run it as root on a host that nobody else needs: it may end libvirtd, or leave it spinning. It needs QEMU, libvirt and its
Python binding; no guest is booted.
"""

import os
import signal
import sys
import time
import uuid
from pathlib import Path

import libvirt

NAME = f"channel-{uuid.uuid4().hex[:8]}"
DOMAIN = f"""<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>32</memory><os><type machine='q35'>hvm</type></os>
<devices><channel type='unix'><target type='virtio' name='org.example.0'/></channel></devices></domain>"""


def pid_of(program: str, word: str = "") -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].rpartition(b"/")[2].startswith(program.encode()) and any(word.encode() in each for each in words):
            return int(entry.name)
    return 0


def seconds(pid: int) -> float:
    """Processor time of a process; -1 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_until_it_fails() -> None:
    """In a process of its own: a call may wait for the daemon for ever."""
    connection = libvirt.open("qemu:///system")
    domain = connection.createXML(DOMAIN, libvirt.VIR_DOMAIN_START_PAUSED)
    daemon, qemu = pid_of("libvirtd") or pid_of("virtqemud"), pid_of("qemu-system", NAME)
    stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
    domain.openChannel("org.example.0", stream, 0)
    print(f"libvirt {connection.getLibVersion()}, daemon {daemon}, QEMU {qemu}", flush=True)
    os.kill(qemu, signal.SIGKILL)
    sent, until = 0, time.monotonic() + 1
    try:
        while time.monotonic() < until:
            sent += max(0, stream.send(b"x" * 1024))
    except libvirt.libvirtError as error:
        print(f"{sent} bytes were taken after the kill; then: {error}", flush=True)
    os._exit(0)


def main() -> None:
    libvirt.registerErrorHandler(lambda *_: None, None)
    child = os.fork()
    if child == 0:
        write_until_it_fails()
    time.sleep(5)
    daemon = pid_of("libvirtd") or pid_of("virtqemud")
    if not daemon:
        sys.exit("the daemon is gone")
    before = seconds(daemon)
    time.sleep(10)
    after = seconds(daemon)
    answers = os.waitpid(child, os.WNOHANG) != (0, 0)
    print("the client's last call returned" if answers else "the client's last call has not returned")
    print("the daemon is gone" if after < 0 else f"the daemon used {after - before:.1f} s of processor time in 10 s")
    if not answers:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
