"""hypervisor/trial.py: the definition of a copy that is booted aside."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.definition import Boot, findings
from quiesce.hypervisor.domain_xml import Identity
from quiesce.hypervisor.trial import Trial, TrialFiles, port_for, trial
from quiesce.model.errors import RefusedError
from quiesce.wire.messages import PORT_NAME
from tests import definitions

UUID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
GENERATION = "99999999-bbbb-4ccc-8ddd-eeeeeeeeeeee"
FILES = TrialFiles({"vda": "/t/vda.qcow2"}, "/t/nvram.fd", "/t/console.log")
ORDINARY = {
    name: text.format(name="web1", uuid=definitions.UUID, disk=definitions.DISK.format(path="/i/web1.qcow2"))
    for name, text in vars(definitions).items()
    if name.isupper() and isinstance(text, str) and "<domain" in text
}
REACHING = {
    "a device of the host": (
        "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='3' slot='0'/></source></hostdev>"
    ),
    "a device of the host as a card": (
        "<interface type='hostdev'><mac address='52:54:00:00:00:01'/><source><address/></source></interface>"
    ),
    "a bridge": "<interface type='bridge'><source bridge='br0'/><target dev='vnet7'/><model type='virtio'/></interface>",
    "a network": "<interface type='network'><source network='default'/><mac address='52:54:00:00:00:02'/></interface>",
    "a host's card": "<interface type='direct'><source dev='eth0' mode='bridge'/></interface>",
    "a process of the host": (
        "<interface type='vhostuser'><source type='unix' path='/run/vhost.sock' mode='client'/></interface>"
    ),
    "a shared directory": (
        "<filesystem type='mount'><driver type='virtiofs'/><source dir='/srv/x'/><target dir='x'/></filesystem>"
    ),
    "a socket of its own": (
        "<channel type='unix'><source mode='bind' path='/run/own.sock'/><target type='virtio' name='x.0'/></channel>"
    ),
    "a log": "<serial type='file'><source path='/var/log/web1.log'/><target port='1'/></serial>",
    "a network console": "<console type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/></console>",
    "VNC": "<graphics type='vnc' port='5977' listen='0.0.0.0'/>",
    "SPICE": "<graphics type='spice' port='5978'/><redirdev bus='usb' type='spicevmc'/>",
    "a vsock address": "<vsock model='virtio'><cid auto='no' address='77'/></vsock>",
    "shared memory": "<shmem name='shared'><model type='ivshmem-plain'/></shmem>",
    "a TPM of the host": "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
    "a smartcard": "<smartcard mode='host'/>",
    "persistent memory": (
        "<memory model='nvdimm'><source><path>/srv/nvdimm</path></source><target><size>1</size></target></memory>"
    ),
    "entropy of the host": (
        "<rng model='virtio'><backend model='egd' type='tcp'><source mode='connect' host='h' service='1'/></backend></rng>"
    ),
    "another disk": (
        "<disk type='file'><driver name='qemu' type='raw'/><source file='/srv/other.img'/><target dev='vdz'/></disk>"
    ),
    "a network disk": "<disk type='network'><source protocol='nbd' name='x'/><target dev='vdy'/></disk>",
    "a medium": "<disk type='file' device='cdrom'><source file='/srv/cd.iso'/><target dev='sdx'/></disk>",
    "a file of the panic": "<panic model='isa'/>",
}
OF_THE_HOST = (
    r"/srv/|/run/|/var/|/dev/tpm|/i/web1|br0|default|eth0|vnet|5977|5978|4555|0\.0\.0\.0|address='77'|spice|vnc|hostdev"
)


def made(xml: str, **more: Any) -> Trial:
    identity = Identity("quiesce-trial-1", UUID)
    return trial(xml, identity=identity, generation=GENERATION, files=FILES, port=PORT_NAME, **more)


def with_device(device: str) -> str:
    return ORDINARY["DESKTOP"].replace("<watchdog", f"{device}<watchdog")


@pytest.mark.parametrize("device", REACHING)
def test_nothing_of_the_copy_reaches_the_host_or_the_vm(device):
    """Broken: a backup would go out twice, a cluster have a member twice, or production lose a device, a log or a socket."""
    copy = made(with_device(REACHING[device]))
    assert not re.findall(OF_THE_HOST, copy.xml)
    root = ET.fromstring(copy.xml)
    assert root.findall("./devices/interface") == []
    assert [target.get("name") for target in root.iterfind("./devices/channel/target")] == [PORT_NAME]
    assert root.find("./devices/channel/source") is None
    assert [source.get("path") for source in root.iterfind("./devices/serial/source")] == ["/t/console.log"]


@pytest.mark.parametrize("name", ORDINARY)
def test_the_copy_is_another_machine_with_files_of_its_own(name):
    """Broken: libvirt would take the copy for the VM, or its guest believe to be the VM that goes on."""
    copy = made(ORDINARY[name])
    root = ET.fromstring(copy.xml)
    assert domain_xml.identity(copy.xml) == Identity("quiesce-trial-1", UUID)
    assert domain_xml.generation_id(copy.xml) == GENERATION
    assert definitions.UUID not in copy.xml
    assert {disk.path for disk in domain_xml.disks(copy.xml)} - {None} == {"/t/vda.qcow2"}
    assert domain_xml.nvram(copy.xml) in (None, "/t/nvram.fd")
    assert root.findtext("./sysinfo/oemStrings/entry") == f"io.quiesce.trial={UUID}"
    assert root.find("./os/smbios").get("mode") == "sysinfo"
    kept = [each.text for each in findings(root, {"vda"}, Boot()) if each.name not in ("disk", "kernel", "initrd", "loader")]
    assert kept == []


@pytest.mark.parametrize(
    "element", ["<commandline/>", "<cputune><vcpupin vcpu='0' cpuset='3'/></cputune>", "<seclabel type='none'/>"]
)
def test_it_has_no_share_of_the_host_of_its_own(element):
    """Broken: a verification would run on production's processors, or with arguments for QEMU that name anything."""
    assert element[1:6] not in made(ORDINARY["DESKTOP"].replace("<devices>", f"{element}<devices>")).xml


def test_it_says_what_it_has_not():
    """Broken: an application that misses its disk would be shown as damaged, and nobody would know why."""
    copy = made(with_device(REACHING["another disk"] + REACHING["a shared directory"] + REACHING["VNC"]))
    assert copy.left_out == ("interface", "disk vdz", "filesystem")


CARDS = """
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='vnet7'/><model type='e1000'/>
  <driver queues='4'/><bandwidth><inbound average='9'/></bandwidth></interface>
<interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br0'/><model type='virtio'/></interface>
<interface type='bridge'><mac address='52:54:00:00:00:03'/><source bridge='br0'/><vlan><tag id='7'/></vlan></interface>
<interface type='network'><mac address='52:54:00:00:00:04'/><source network='default'/><link state='down'/></interface>
<interface type='hostdev'><mac address='52:54:00:00:00:05'/><source><address/></source></interface>
"""


def test_the_cards_of_a_copy_lead_to_the_other_copies_only():
    """Broken: a copy would answer for production's address on production's network; or copies of one network not meet."""
    networks: list[str] = []

    def plug(network: str) -> tuple[str, int]:
        networks.append(network)
        return "127.0.0.1", 4000 + len(networks)

    copy = made(with_device(CARDS), plug=plug)
    found = ET.fromstring(copy.xml).findall("./devices/interface")[-4:]
    assert {card.get("type") for card in found} == {"client"}
    assert {card.find("source").get("address") for card in found} == {"127.0.0.1"}
    assert [card.find("mac").get("address")[-1] for card in found] == ["1", "2", "3", "4"]
    assert {child.tag for card in found for child in card} == {"source", "mac", "model", "link"}
    one, same, tagged, other = networks[-4:]
    assert (one == same, len({one, tagged, other})) == (True, 3)
    assert not re.findall(r"br0|vnet7|'default'|hostdev|bandwidth", copy.xml)
    assert copy.left_out == ("interface",)  # the host's own card


def test_what_is_to_last_lasts():
    """Broken: a settled checkpoint would lack what was in the host's memory when its power failed; or its guest not be told to
    power itself off."""
    xml = ORDINARY["DESKTOP"].replace("<driver name='qemu'", "<driver name='qemu' cache='unsafe'")
    passing, lasting = (ET.fromstring(made(xml, lasting=each).xml) for each in (False, True))
    for root, cache, policy, ports in (
        (passing, "unsafe", "report", [PORT_NAME]),
        (lasting, None, "stop", [PORT_NAME, "org.qemu.guest_agent.0"]),
    ):
        driver = root.find("./devices/disk[@device='disk']/driver")
        assert (driver.get("cache"), driver.get("error_policy")) == (cache, policy)
        assert [target.get("name") for target in root.iterfind("./devices/channel/target")] == ports


def test_its_memory_is_limited():
    """Broken: `--memory` would be passed over, and the host run out of memory."""
    numa = ORDINARY["DESKTOP"].replace("<clock", "<cpu><numa><cell id='0' cpus='0' memory='64' unit='MiB'/></numa></cpu><clock")
    whole, half = made(numa), made(numa, memory_limit=32 << 20)
    assert (whole.memory, half.memory) == (64 << 20, 32 << 20)
    assert ET.fromstring(half.xml).findtext("memory") == str(32 << 10)
    assert "numa" not in half.xml
    assert made(numa, memory_limit=1 << 40).memory == 64 << 20


def test_a_guest_that_cannot_be_told_is_not_booted():
    """Broken: cron, mail and cluster services of a copy would run, because nothing told them not to."""
    with pytest.raises(RefusedError, match="cannot be told that it is a copy"):
        made(ORDINARY["DESKTOP"].replace("x86_64", "s390x"))


def test_a_windows_guest_is_asked_through_its_own_agent():
    """Broken: nobody could ask a guest that has VSS and not our agent."""
    ours = ORDINARY["DESKTOP"]
    assert port_for(ours, PORT_NAME) == PORT_NAME
    assert port_for(ours.replace("io.quiesce.agent.0", "another"), PORT_NAME) == "org.qemu.guest_agent.0"
    assert port_for(ours.replace("io.quiesce.agent.0", "a").replace("org.qemu.guest_agent.0", "b"), PORT_NAME) == PORT_NAME
