"""hypervisor/needs.py, hypervisor/lookups.py, and what a restore does about them (disks/needs.py)."""

from __future__ import annotations

import socket
import xml.etree.ElementTree as ET

import libvirt
import pytest

from quiesce.hypervisor import lookups, needs
from quiesce.hypervisor.lookups import Presence, presence
from quiesce.hypervisor.needs import Need, Wanted
from quiesce.model.errors import HypervisorError, RefusedError
from quiesce.operations.group_checkpoint import group_checkpoint
from quiesce.operations.group_restore import group_restore
from tests.unit.fake_host import FakeVm
from tests.unit.world import World

DEVICES = {
    "<interface type='network'><source network='lan' portgroup='p'/></interface>": [(Wanted.NETWORK, "lan")],
    "<interface type='bridge'><source bridge='br7'/></interface>": [(Wanted.INTERFACE, "br7")],
    "<interface type='direct'><source dev='eth9' mode='vepa'/></interface>": [(Wanted.INTERFACE, "eth9")],
    "<interface type='user'><filterref filter='clean'/></interface>": [(Wanted.FILTER, "clean")],
    "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>": [(Wanted.FILE, "/dev/vhost-vdpa-0")],
    "<interface type='hostdev'><source><address type='pci' domain='0x0' bus='0x1' slot='0x2' function='0x3'/></source>"
    "</interface>": [(Wanted.PCI, "0000:01:02.3")],
    "<hostdev mode='subsystem' type='pci'><source><address domain='0x0001' bus='0xa1' slot='0x1f' function='0x0'/></source>"
    "</hostdev>": [(Wanted.PCI, "0001:a1:1f.0")],
    "<hostdev mode='subsystem' type='usb'><source><vendor id='0x951'/><product id='0x1625'/></source></hostdev>": [
        (Wanted.USB, "0951:1625")
    ],
    "<hostdev mode='subsystem' type='usb'><source><address bus='1' device='4'/></source></hostdev>": [(Wanted.USB, "1.4")],
    "<hostdev mode='subsystem' type='usb'><source startupPolicy='optional'><address bus='1' device='4'/></source>"
    "</hostdev>": [],
    "<hostdev mode='subsystem' type='mdev'><source><address uuid='u-1'/></source></hostdev>": [(Wanted.MEDIATED, "u-1")],
    "<hostdev mode='capabilities' type='misc'><source><char>/dev/x</char></source></hostdev>": [(Wanted.FILE, "/dev/x")],
    "<filesystem type='mount'><driver type='virtiofs'/><binary path='/b/virtiofsd'/><source dir='/srv/s'/></filesystem>": [
        (Wanted.FILE, "/b/virtiofsd"),
        (Wanted.DIRECTORY, "/srv/s"),
    ],
    "<filesystem type='file'><source file='/srv/i'/></filesystem>": [(Wanted.FILE, "/srv/i")],
    "<filesystem type='mount'><source socket='/run/fs.sock'/></filesystem>": [(Wanted.FILE, "/run/fs.sock")],
    "<rng model='virtio'><backend model='random'>/dev/hwrng</backend></rng>": [(Wanted.FILE, "/dev/hwrng")],
    "<input type='passthrough'><source evdev='/dev/input/event1'/></input>": [(Wanted.FILE, "/dev/input/event1")],
    "<memory model='nvdimm'><source><path>/n.img</path></source></memory>": [(Wanted.FILE, "/n.img")],
    "<serial type='dev'><source path='/dev/ttyS7'/></serial>": [(Wanted.FILE, "/dev/ttyS7")],
    "<serial type='file'><source path='/var/log/vm/a.log'/></serial>": [(Wanted.DIRECTORY, "/var/log/vm")],
    "<console type='pty'><log file='/var/log/vm/b.log'/></console>": [(Wanted.DIRECTORY, "/var/log/vm")],
    "<channel type='unix'><source mode='connect' path='/run/c'/></channel>": [(Wanted.FILE, "/run/c")],
    "<channel type='unix'><source mode='bind' path='/run/c'/></channel>": [(Wanted.DIRECTORY, "/run")],
    "<graphics type='vnc' port='5901' autoport='no'/>": [(Wanted.PORT, "127.0.0.1:5901")],
    "<graphics type='vnc' port='5901' autoport='yes' listen='192.0.2.7'/>": [(Wanted.ADDRESS, "192.0.2.7")],
    "<graphics type='spice' port='-1' tlsPort='5902'><listen type='address' address='::1'/></graphics>": [
        (Wanted.ADDRESS, "::1"),
        (Wanted.PORT, "::1:5902"),
    ],
    "<graphics type='vnc'><listen type='network' network='lan'/></graphics>": [],
    "<serial type='tcp'><source mode='bind' host='192.0.2.7' service='4555'/></serial>": [
        (Wanted.ADDRESS, "192.0.2.7"),
        (Wanted.PORT, "192.0.2.7:4555"),
    ],
    "<serial type='tcp'><source mode='connect' host='192.0.2.7' service='4555'/></serial>": [],
    "<tpm><backend type='emulator'><encryption secret='u-2'/></backend></tpm>": [(Wanted.SECRET, "u-2")],
    "<tpm><backend type='passthrough'><device path='/dev/tpm7'/></backend></tpm>": [(Wanted.FILE, "/dev/tpm7")],
    "<disk type='network'><auth username='a'><secret type='ceph' usage='me'/></auth><target dev='vdb'/></disk>": [
        (Wanted.SECRET, "ceph:me")
    ],
    "<disk type='file'><source file='/x'><encryption><secret type='passphrase' uuid='u-3'/></encryption></source>"
    "<target dev='vdb'/></disk>": [(Wanted.FILE, "/x"), (Wanted.SECRET, "u-3")],
    "<disk type='volume'><source pool='p' volume='v'/><target dev='vdb'/></disk>": [(Wanted.POOL, "p"), (Wanted.VOLUME, "p/v")],
    "<disk type='block'><source dev='/dev/vg/x'/><target dev='vdb'/></disk>": [(Wanted.FILE, "/dev/vg/x")],
    "<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sda'/></disk>": [(Wanted.FILE, "/a.iso")],
    "<disk type='file' device='cdrom'><target dev='sda'/></disk>": [],
    "<disk type='volume' device='cdrom'><source pool='p' volume='v'/><target dev='sda'/></disk>": [(Wanted.VOLUME, "p/v")],
    "<disk type='file'><source file='/x'/><target dev='vda'/></disk>": [],
    "<emulator>/usr/bin/q</emulator>": [(Wanted.FILE, "/usr/bin/q")],
}
SYSTEM = {
    "<kernel>/k</kernel><initrd>/i</initrd>": ["/k", "/i"],
    "<dtb>/d</dtb>": ["/d"],
    "<loader type='pflash'>/OVMF.fd</loader><nvram template='/t.fd'>/n.fd</nvram>": ["/OVMF.fd"],
    "<loader/><nvram template='/t.fd'/>": ["/t.fd"],
    "<acpi><table type='slic'>/slic</table></acpi>": ["/slic"],
}


def definition(devices: str = "", system: str = "") -> str:
    return f"<domain><os>{system}</os><devices>{devices}</devices></domain>"


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_device_needs(device):
    """Broken: a VM would be powered off for a definition with which it cannot start."""
    assert [(need.kind, need.name) for need in needs.needs(definition(device), {"vda"})] == DEVICES[device]


@pytest.mark.parametrize("system", SYSTEM)
def test_what_the_firmware_needs(system):
    """Broken: a VM would be powered off, although its kernel or firmware is gone."""
    assert [need.name for need in needs.needs(definition(system=system), ())] == SYSTEM[system]


@pytest.mark.parametrize("kind", ["file", "block", "volume", "network"])
def test_an_emptied_drive_is_a_drive_without_a_medium(kind):
    """Broken: libvirt would refuse the definition, or start the VM with the medium that is gone."""
    drive = f"<disk type='{kind}' device='cdrom'><source a='b'/><backingStore/><target dev='sda'/><readonly/></disk>"
    other = "<disk type='file'><source file='/x'/><target dev='vda'/></disk>"
    changed = ET.fromstring(needs.emptied(definition(drive + other), {"sda"}))
    first, second = changed.findall("./devices/disk")
    assert [child.tag for child in first] == ["target", "readonly"]
    assert first.get("type") in ("file", "block")
    assert second.find("source") is not None


class Libvirt:
    """Answers each look-up as the test says."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def __getattr__(self, _name: str) -> object:
        def look(*_: object) -> object:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return look


class Found(Libvirt):
    def __init__(self, *, active: bool) -> None:
        super().__init__(self)
        self.active = active

    def isActive(self) -> bool:  # noqa: N802 - libvirt's name
        return self.active


def refusal(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("x")
    error.err = (code, 0, "x", 0, "", "", "", 0, 0)
    return error


LOOKED_UP = {
    Wanted.NETWORK: libvirt.VIR_ERR_NO_NETWORK,
    Wanted.POOL: libvirt.VIR_ERR_NO_STORAGE_POOL,
    Wanted.VOLUME: libvirt.VIR_ERR_NO_STORAGE_VOL,
    Wanted.FILTER: libvirt.VIR_ERR_NO_NWFILTER,
    Wanted.SECRET: libvirt.VIR_ERR_NO_SECRET,
}


@pytest.mark.parametrize("kind", LOOKED_UP)
def test_what_libvirt_knows_not_is_missing_and_what_it_cannot_say_is_there(kind):
    """Broken: a restore would be refused where libvirt has no driver to ask, or not be refused where it should."""
    need = Need(kind, "a/b", "x")
    assert presence(Libvirt(refusal(LOOKED_UP[kind])), need, local=True) is Presence.MISSING
    assert presence(Libvirt(refusal(libvirt.VIR_ERR_NO_SUPPORT)), need, local=True) is Presence.THERE
    assert presence(Found(active=True), need, local=True) is Presence.THERE
    if kind in (Wanted.NETWORK, Wanted.POOL, Wanted.VOLUME):
        assert presence(Found(active=False), need, local=True) is Presence.STOPPED


def test_interfaces_and_devices_of_this_host(tmp_path, monkeypatch):
    """Broken: a bridge that exists would be missing, or one that is gone be there."""
    monkeypatch.setattr(lookups, "_SYSFS", dict.fromkeys(lookups._SYSFS, str(tmp_path)))
    (tmp_path / "br0").mkdir()
    for kind in lookups._SYSFS:
        assert presence(Libvirt(None), Need(kind, "br0", "x"), local=True) is Presence.THERE
        assert presence(Libvirt(None), Need(kind, "br1", "x"), local=True) is Presence.MISSING


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (Wanted.ADDRESS, "127.0.0.1", Presence.THERE),
        (Wanted.ADDRESS, "::", Presence.THERE),
        (Wanted.ADDRESS, "192.0.2.77", Presence.MISSING),
        (Wanted.ADDRESS, "2001:db8::77", Presence.MISSING),
        (Wanted.ADDRESS, "a-name-that-nobody-looks-up", Presence.THERE),
        (Wanted.PORT, "127.0.0.1:{taken}", Presence.TAKEN),
        (Wanted.PORT, "192.0.2.77:5901", Presence.THERE),  # the address is missing, which is enough
    ],
)
def test_where_a_vm_of_this_host_can_listen(kind, name, expected):
    """Broken: a VM would be powered off, and QEMU not start on an address that the host had last year; or a name be asked for
    in the DNS."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        need = Need(kind, name.format(taken=taken.getsockname()[1]), "graphics")
        assert presence(Libvirt(None), need, local=True) is expected
        assert presence(Libvirt(None), need, local=False) is Presence.THERE


class Device:
    def __init__(self, name: str, xml: str) -> None:
        self._name, self._xml = name, xml

    def name(self) -> str:
        return self._name

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        return self._xml


REMOTE = [
    Device("net_br0_52", "<device><capability type='net'><interface>br0</interface></capability></device>"),
    Device("pci_0000_01_00_0", "<device><capability type='pci'/></device>"),
    Device("mdev_aa_bb_0000_01_00_0", "<device><capability type='mdev'/></device>"),
    Device(
        "usb_1_4",
        "<device><capability type='usb_device'><bus>1</bus><device>4</device><product id='0x1625'>P</product>"
        "<vendor id='0x0951'/></capability></device>",
    ),
]


@pytest.mark.parametrize(
    ("kind", "there", "missing"),
    [
        (Wanted.INTERFACE, "br0", "br"),
        (Wanted.PCI, "0000:01:00.0", "0000:02:00.0"),
        (Wanted.MEDIATED, "aa-bb", "aa-cc"),
        (Wanted.USB, "0951:1625", "0951:1626"),
        (Wanted.USB, "1.4", "1.5"),
    ],
)
def test_interfaces_and_devices_of_a_remote_host(kind, there, missing):
    """Broken: a restore on a remote host would not be looked at, or always be refused."""
    assert presence(Libvirt(REMOTE), Need(kind, there, "x"), local=False) is Presence.THERE
    assert presence(Libvirt(REMOTE), Need(kind, missing, "x"), local=False) is Presence.MISSING


# -- restores


def put(world: World, more: str) -> FakeVm:
    vm = world.vm()
    vm.xml = vm.xml.replace("</devices>", f"{more}</devices>")
    world.take(vm)
    return vm


@pytest.mark.parametrize("state", [Presence.MISSING, Presence.STOPPED])
def test_a_restore_that_could_not_start_is_refused_while_the_vm_runs(world, state):
    """Broken: the VM would be powered off, and neither the old nor the new state start."""
    vm = put(world, "<interface type='network'><source network='lan'/></interface>")
    world.host.lacking["lan"] = state
    before = vm.xml
    with pytest.raises(RefusedError, match="lan") as refusal:
        world.restore(vm, start=True)
    assert refusal.value.exit_code == 4
    assert (vm.active(), vm.xml, world.names(vm)) == (True, before, ["a"])


def test_a_network_that_is_not_active_is_a_warning_if_the_vm_stays_off(world):
    """Broken: an administrator could not restore now and start the network later."""
    vm = put(world, "<interface type='network'><source network='lan'/></interface>")
    world.host.lacking["lan"] = Presence.STOPPED
    world.restore(vm)
    assert any("lan" in text for text in world.warnings())
    world.host.lacking["lan"] = Presence.MISSING
    with pytest.raises(RefusedError, match="lan"):
        world.restore(vm)


@pytest.mark.parametrize("device", ["cdrom", "floppy"])
def test_a_medium_that_is_gone_is_an_empty_drive_and_a_warning(world, device):
    """Broken: a VM could not be restored because somebody threw an installer's image away."""
    medium = world.host.storage.make("/media/a.iso", format="raw")
    vm = put(world, f"<disk type='file' device='{device}'><source file='{medium}'/><target dev='sdz'/></disk>")
    world.restore(vm)
    assert str(medium) in vm.xml
    assert not any(str(medium) in text for text in world.warnings())
    world.host.storage.remove(medium)
    world.restore(vm)
    assert str(medium) not in vm.xml
    assert "sdz" in vm.xml
    assert any(str(medium) in text for text in world.warnings())


def test_a_shared_directory_that_is_gone_is_named(world):
    """Broken: the VM would be off, with a definition with which it does not start."""
    vm = put(world, "<filesystem type='mount'><source dir='/srv/shared'/><target dir='x'/></filesystem>")
    world.host.storage.unreadable["/srv/shared"] = "there is no such directory"
    with pytest.raises(RefusedError, match="shared"):
        world.restore(vm)
    assert vm.active()
    del world.host.storage.unreadable["/srv/shared"]
    world.restore(vm)


@pytest.mark.parametrize("discard", [False, True])
def test_a_start_that_fails_tells_the_way_back(world, discard, monkeypatch):
    """Broken: a VM would stay off, and nobody know that the state from before is there, and how to get it."""
    vm = world.vm()
    world.take(vm)

    def fail() -> None:
        raise HypervisorError("starting web1: no memory")

    monkeypatch.setattr(vm, "start", fail)
    with pytest.raises(HypervisorError, match="no memory") as error:
        world.restore(vm, start=True, discard_current=discard)
    hint = str(error.value.hint)
    safety = [name for name in world.names(vm) if name.startswith("before restore")]
    assert [f"web1@{name}" in hint for name in safety] == ([] if discard else [True])
    assert ("discarded" in hint) is discard


def test_a_group_is_refused_before_any_member_changes(world):
    """Broken: one server of the group would be back, and the other not."""
    one, two = world.vm("one"), world.vm("two")
    two.xml = two.xml.replace("</devices>", "<interface type='network'><source network='lan'/></interface></devices>")
    world.group("one", "two")
    group_checkpoint(world.context, "shop", name="g", window_s=10)
    world.host.lacking["lan"] = Presence.MISSING
    before = one.xml, two.xml
    with pytest.raises(RefusedError, match="lan"):
        group_restore(world.context, "shop@g", start=True)
    assert (one.xml, two.xml) == before
    assert one.active()
    assert two.active()


def test_a_member_that_does_not_start_is_named_with_the_way_back(world, monkeypatch):
    """Broken: half a group would run, and nobody know what to do next."""
    one, two = world.vm("one"), world.vm("two")
    world.group("one", "two")
    group_checkpoint(world.context, "shop", name="g", window_s=10)

    def fail() -> None:
        raise HypervisorError("no memory")

    start = two.start
    monkeypatch.setattr(two, "start", fail)
    with pytest.raises(HypervisorError, match=r"two .*no memory") as error:
        group_restore(world.context, "shop@g", start=True)
    assert "before restore" in str(error.value.hint)
    monkeypatch.setattr(two, "start", start)
    group_restore(world.context, "shop@g", start=True)
    assert one.active()
    assert two.active()


NUMA = "<cpu><numa><cell id='0' cpus='0' memory='1048576'/><cell id='1' cpus='1' memory='3145728'/></numa></cpu>"
HUGE = {
    "": {},
    "<hugepages/>": {0: 4194304},
    "<hugepages><page size='2048' unit='KiB'/></hugepages>": {2048: 4194304},
    "<hugepages><page size='1048576' unit='KiB' nodeset='0'/></hugepages>": {1048576: 1048576},
    "<hugepages><page size='1048576' unit='KiB' nodeset='1'/><page size='2048' unit='KiB'/></hugepages>": {
        1048576: 3145728,
        2048: 1048576,
    },
    "<hugepages><page size='2048' unit='KiB' nodeset='0-1'/></hugepages>": {2048: 4194304},
}


@pytest.mark.parametrize(("pages", "kib"), HUGE.items())
def test_the_huge_pages_of_a_definition(pages, kib):
    """Broken: a restore would power off a VM whose memory the host cannot give again; or refuse because of what it has now."""
    xml = f"<domain><memory unit='KiB'>4194304</memory><memoryBacking>{pages}</memoryBacking>{NUMA}</domain>"
    found = [need for need in needs.needs(xml, ()) if need.kind is Wanted.HUGE_PAGES]
    assert dict(map(needs.huge, found)) == kib
    assert [need for need in found if needs.own(xml).besides(need)] == []
    assert [needs.Own(huge=dict.fromkeys(kib, 1024)).besides(need) for need in found].count(None) == 0
    for need in found:
        assert presence(WithPages(4194303), need, local=False) is (
            Presence.SHORT if needs.huge(need)[1] == 4194304 else Presence.THERE
        )
        assert presence(WithPages(4194304), need, local=False) is Presence.THERE


class WithPages:
    """As libvirt says how many pages are free, of each size."""

    def __init__(self, kib):
        self.kib = kib

    def getCapabilities(self):  # noqa: N802 - libvirt's own name
        sizes = "".join(f"<pages unit='KiB' size='{size}'/>" for size in (4, 2048, 1048576))
        return f"<capabilities><host><cpu>{sizes}</cpu><topology><cells><cell id='0'/></cells></topology></host></capabilities>"

    def getFreePages(self, sizes, start, number, _flags):  # noqa: N802 - libvirt's own name
        assert (start, number) == (0, 1)
        assert 4 not in sizes
        return {0: {sizes[0]: self.kib // sizes[0]}}
