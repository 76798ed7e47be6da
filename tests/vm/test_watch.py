"""Automatic checkpoints: `quiesce watch` and `quiesce start`, with a guest of 27 bytes that shuts down when it is asked to."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from lab import standstill
from lab.bare import Bare, directory
from tests.host import Quiesce

SOCKET = "/run/libvirt/libvirt-sock"
GUEST = bytes.fromhex(
    "fb"  # sti
    "ba0206 b80001 ef"  # enable the power button: bit 8 of PM1_EN
    "f4 ba0006 ed f6c401 74f6"  # halt until an interrupt, and again until PM1_STS says it was pressed
    "ba0406 b80020 ef"  # enter S5 by PM1_CNT: power off
    "ebfe"
)
"""A boot sector."""


class Tiny(Bare):
    """A VM with one disk, off, whose guest heeds the power button."""

    def define(self) -> libvirt.virDomain:
        xml = super().define().XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        return self.connection.defineXML(xml.replace("</os>", "</os><features><acpi/></features>"))

    def make_disks(self) -> None:
        super().make_disks()
        sector = self.directory / "sector"
        sector.write_bytes(GUEST.ljust(510, b"\0") + b"\x55\xaa")
        image = self.directory / "vda.qcow2"
        subprocess.run(["qemu-io", "-c", f"write -q -s {sector} 0 512", image], check=True)
        sector.unlink()

    def write(self) -> None:
        """As the guest would, that runs."""
        write = 'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -q -P 7 512k 4k"'
        libvirt_qemu.qemuMonitorCommand(self.domain, write, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)

    def shut_down(self) -> None:
        """The guest does it itself, once it has booted."""

        def off() -> bool:
            with contextlib.suppress(libvirt.libvirtError):  # it went off just now
                self.domain.shutdown()
            return not self.domain.isActive()

        wait_for(off)


class Watch:
    """`quiesce watch`, and what it says."""

    def __init__(self, quiesce: Quiesce, *arguments: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [quiesce.program, "watch", *arguments], stderr=subprocess.PIPE, text=True, env=quiesce.environment
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.wait_for("watching the VMs of")

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as stream:
            for line in stream:
                print(f"[{time.monotonic():.3f}] watch: {line}", end="")
                self.lines.append(line)

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_for(lambda: sum(text in line for line in self.lines) >= times or self.process.poll() is not None)
        assert self.process.poll() is None, self.lines
        assert sum(text in line for line in self.lines) >= times, self.lines

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        self._reader.join(5)
        return code


@pytest.fixture
def tiny() -> Iterator[Tiny]:
    with directory() as path:
        tiny = Tiny(path, start=False)
        yield tiny
        tiny.remove()


@pytest.fixture
def watching(quiesce: Quiesce) -> Iterator[Callable[..., Watch]]:
    """Starts `quiesce watch`; the test fails if it does not end cleanly."""
    started: list[Watch] = []

    def start(*arguments: str) -> Watch:
        started.append(Watch(quiesce, *arguments))
        return started[-1]

    yield start
    assert [watch.end() for watch in started] == [0] * len(started)


def wait_for(condition: Callable[[], bool]) -> None:
    standstill.wait_for(condition, 90, every_s=0.2)


def automatic(quiesce: Quiesce, vm: Bare) -> list[Any]:
    return [node for node in quiesce("tree", vm.name)["checkpoints"] if node["kind"] == "automatic"]


def test_from_start_to_clean_shutdown(tiny: Tiny, quiesce: Quiesce, watching: Callable[..., Watch]) -> None:
    """Broken: a VM would run without its checkpoint, or images pile up that nobody asked for."""
    quiesce("settings", tiny.name, "--automatic", "--require", "crash")
    watch = watching()
    tiny.domain.create()
    watch.wait_for("was taken: crash-consistent")
    (node,) = automatic(quiesce, tiny)
    assert node["name"].startswith("automatic 20")
    tiny.shut_down()
    watch.wait_for("was removed")
    wait_for(lambda: not automatic(quiesce, tiny))
    assert sorted(path.name for path in tiny.directory.glob("*.qcow2")) == ["vda.qcow2"]
    tiny.domain.create()  # and the next run has one again
    watch.wait_for("was taken", times=2)


def test_what_was_not_a_clean_shutdown_keeps_it(tiny: Tiny, quiesce: Quiesce, watching: Callable[..., Watch]) -> None:
    """Broken: the checkpoint would be gone when it is needed most. Also after the service was away."""
    quiesce("settings", tiny.name, "--automatic", "--require", "crash")
    watch = watching()
    tiny.domain.create()
    watch.wait_for("was taken")
    tiny.domain.destroy()
    watch.end()
    watch = watching()
    tiny.domain.create()  # there is one, so no other is taken
    time.sleep(2)
    tiny.domain.reset()
    time.sleep(2)
    assert len(automatic(quiesce, tiny)) == 1
    tiny.shut_down()
    watch.wait_for("was removed")


def test_only_vms_that_are_set_to_it_and_only_automatic_ones(
    tiny: Tiny, quiesce: Quiesce, watching: Callable[..., Watch]
) -> None:
    """Broken: VMs of people who want none would be switched to other disks, or their own checkpoints be deleted."""
    watch = watching()
    tiny.domain.create()
    quiesce("checkpoint", tiny.name, "--name", "mine", "--require", "crash")
    quiesce("settings", tiny.name, "--automatic", "--require", "crash")
    tiny.shut_down()
    tiny.domain.create()
    time.sleep(3)
    assert [node["name"] for node in quiesce("tree", tiny.name)["checkpoints"]] == ["mine"]
    assert not any(tiny.name in line for line in watch.lines)


def test_what_happened_while_nobody_watched(tiny: Tiny, quiesce: Quiesce, watching: Callable[..., Watch]) -> None:
    """Broken: VMs that libvirt starts with the host would be missed."""
    quiesce("settings", tiny.name, "--automatic", "--require", "crash")
    tiny.domain.create()
    watch = watching()
    watch.wait_for("was taken")
    assert watch.end() == 0
    tiny.shut_down()
    watching().wait_for("was removed")
    assert automatic(quiesce, tiny) == []


def test_a_guest_is_waited_for(tiny: Tiny, quiesce: Quiesce, watching: Callable[..., Watch]) -> None:
    """Broken: a guest that boots would be given up on, or waited for when it is off again, or keep the service from ending."""
    quiesce("settings", tiny.name, "--automatic")  # application-consistent, which takes an agent
    watch = watching()
    tiny.domain.create()
    watch.wait_for(f"{tiny.name}: waiting for its guest")
    quiesce("settings", tiny.name, "--require", "crash")  # nobody insists any more
    watch.wait_for("was taken: crash-consistent")
    tiny.shut_down()
    watch.wait_for("was removed")
    quiesce("settings", tiny.name, "--require", "application")
    tiny.domain.create()
    watch.wait_for("waiting for its guest", times=2)
    with standstill.within(5):
        assert watch.end() == 0


def test_a_vm_that_cannot_be_checkpointed_does_not_end_the_service(
    tiny: Tiny, quiesce: Quiesce, watching: Callable[..., Watch]
) -> None:
    """Broken: one VM would leave all others without checkpoints."""
    quiesce("settings", tiny.name, "--automatic", "--require", "crash")
    tiny.domain.snapshotCreateXML("<domainsnapshot><name>theirs</name></domainsnapshot>", 0)
    watch = watching()
    tiny.domain.create()
    watch.wait_for(f"{tiny.name}: {tiny.name} has 1 snapshot(s) of libvirt's own")
    tiny.domain.destroy()
    tiny.domain.snapshotLookupByName("theirs").delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    tiny.domain.create()
    watch.wait_for("was taken")


def copies(vm: Bare) -> list[libvirt.virDomain]:
    return [domain for domain in vm.connection.listAllDomains() if domain.name().startswith("quiesce-trial-")]


def test_the_newest_checkpoint_is_booted_aside(tiny: Tiny, quiesce: Quiesce, watching: Callable[..., Watch]) -> None:
    """Broken: the setting would do nothing; or a service that was stopped would leave copies that run.

    The guest has no agent, so its copy comes to nothing; here it is powered off before the service gives up."""
    quiesce("settings", tiny.name, "--verify", "always")
    tiny.domain.create()
    quiesce("checkpoint", tiny.name, "--name", "one", "--require", "crash")
    watch = watching()

    def off() -> bool:
        for copy in copies(tiny):
            with contextlib.suppress(libvirt.libvirtError):
                copy.shutdown()
        return any("the copy ended before its guest was up" in line for line in watch.lines)

    wait_for(off)
    wait_for(lambda: quiesce("show", f"{tiny.name}@one").get("proof", {}).get("state") == "failed")
    quiesce("checkpoint", tiny.name, "--name", "two", "--require", "crash")
    wait_for(lambda: len(copies(tiny)) == 1)
    assert watch.end() == 0
    assert copies(tiny) == []
    assert list(tiny.directory.glob("quiesce-trial-*")) == []
    assert "proof" not in quiesce("show", f"{tiny.name}@two")
    assert quiesce("doctor", tiny.name)[0]["state"] == "clean"


class Proxy:
    """libvirt's socket under another path, to be cut as if the daemon went away, and to come back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: list[socket.socket] = []
        self.restore()

    def restore(self) -> None:
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        self._path.unlink()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(SOCKET)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


def test_libvirt_goes_away_and_comes_back(tiny: Tiny, quiesce: Quiesce, watching: Callable[..., Watch], tmp_path: Path) -> None:
    """Broken: after an update of libvirt the service would watch nothing, for good."""
    quiesce("settings", tiny.name, "--automatic", "--require", "crash")
    proxy = Proxy(tmp_path / "socket")
    watch = watching("--connect", f"qemu+unix:///system?socket={tmp_path}/socket")
    proxy.cut()
    watch.wait_for("the connection to libvirt was lost; trying again")
    tiny.domain.create()
    proxy.restore()
    watch.wait_for("watching the VMs of", times=2)
    watch.wait_for("was taken")
    tiny.shut_down()
    watch.wait_for("was removed")
    watch.end()
    proxy.cut()


def test_start_takes_one_before_the_guest_runs(tiny: Tiny, quiesce: Quiesce, watching: Callable[..., Watch]) -> None:
    """Broken: there would be nothing to go back to, or not what the guest started from."""
    quiesce("settings", tiny.name, "--automatic", "--require", "crash")
    started = quiesce("start", tiny.name)
    assert started["vm"] == tiny.name
    assert (started["checkpoint"]["kind"], started["checkpoint"]["off"]) == ("automatic", True)
    assert tiny.domain.isActive()
    assert "is not off" in quiesce.fails("start", tiny.name, code=4)
    tiny.shut_down()
    assert quiesce("start", tiny.name)["checkpoint"] is None  # there is one
    watch = watching()
    tiny.write()
    tiny.shut_down()
    watch.wait_for("was removed")
    quiesce("settings", tiny.name, "--require", "application")
    started = quiesce("start", tiny.name)["checkpoint"]
    assert started["consistency"] == "application"  # its guest has shut itself down


def test_start_without_a_checkpoint(tiny: Tiny, quiesce: Quiesce) -> None:
    """Broken: VMs that want none would not start, or one that lost power would not start any more."""
    assert quiesce("start", tiny.name) == {"vm": tiny.name, "checkpoint": None}
    tiny.domain.destroy()
    quiesce("settings", tiny.name, "--automatic")
    finished = quiesce.run("start", tiny.name)
    assert finished.returncode == 0
    assert "warning: no automatic checkpoint" in finished.stderr
    assert f"{tiny.name} is running" in finished.stdout
    tiny.domain.destroy()
    tiny.domain.snapshotCreateXML("<domainsnapshot><name>theirs</name></domainsnapshot>", 0)
    quiesce.fails("start", tiny.name, code=4)
    assert not tiny.domain.isActive()
