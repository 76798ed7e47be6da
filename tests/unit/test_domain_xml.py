"""hypervisor/domain_xml.py"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.domain_xml import Channel, Disk

DOMAIN = """
<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <title>the web server</title>
  <memory unit='KiB'>1048576</memory>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
      <source file='/images/top.qcow2' index='4'/>
      <backingStore type='file' index='3'>
        <format type='qcow2'/>
        <source file='/images/middle.qcow2'/>
        <backingStore type='block' index='1'>
          <format type='raw'/>
          <source dev='/dev/vg/base'/>
          <backingStore/>
        </backingStore>
      </backingStore>
      <mirror type='file' job='copy' ready='yes'><source file='/images/copy.qcow2'/></mirror>
      <target dev='vda' bus='virtio'/>
      <boot order='1'/>
      <serial>KEEP-ME</serial>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/data' index='2'/>
      <backingStore/>
      <target dev='vdb' bus='virtio'/>
      <shareable/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image'/>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <channel type='unix'>
      <source mode='bind' path='/run/x'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
    </channel>
    <channel type='unix'><target type='virtio' name='io.quiesce.agent.0' state='disconnected'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <hostdev mode='subsystem' type='scsi'/>
    <hostdev mode='subsystem' type='pci'/>
    <hostdev mode='capabilities' type='storage'/>
  </devices>
  <qemu:commandline><qemu:arg value='-version'/></qemu:commandline>
</domain>
"""
GENERATION = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
UUID = "22222222-2222-4222-8222-222222222222"


def disk(xml: str, target: str) -> ET.Element:
    return next(found for found in ET.fromstring(xml).iterfind("./devices/disk") if found.find("target").get("dev") == target)


def test_disks_are_read_as_they_are():
    """Broken: a disk that cannot be checkpointed would be taken for one that can, or its chain for another."""
    assert domain_xml.disks(DOMAIN) == (
        Disk("vda", "disk", "file", "/images/top.qcow2", "qcow2", read_only=False, shareable=False, mirrored=True,
             chain=("/images/middle.qcow2", "/dev/vg/base"), mirror="/images/copy.qcow2", mirror_ready=True, serial="KEEP-ME"),
        Disk("vdb", "disk", "block", "/dev/vg/data", "raw", read_only=False, shareable=True, mirrored=False, chain=()),
        Disk("vdc", "disk", "network", None, "raw", read_only=False, shareable=False, mirrored=False, chain=()),
        Disk("sda", "cdrom", "file", None, "raw", read_only=True, shareable=False, mirrored=False, chain=()),
    )  # fmt: skip


def test_channels_say_whether_somebody_listens():
    """Broken: quiesce would wait for an agent that is not running, or refuse one that is."""
    assert domain_xml.channels(DOMAIN) == {
        "org.qemu.guest_agent.0": Channel("org.qemu.guest_agent.0", connected=True),
        "io.quiesce.agent.0": Channel("io.quiesce.agent.0", connected=False),
        "com.redhat.spice.0": Channel("com.redhat.spice.0", connected=False),
    }


def test_host_devices_with_state_of_their_own_are_found():
    """Broken: a checkpoint would be promised of a device that has none."""
    assert domain_xml.passthrough_devices(DOMAIN) == ("scsi host device", "storage host device")


@pytest.fixture
def restored() -> str:
    return domain_xml.restored(
        DOMAIN,
        identity=domain_xml.Identity("web2", UUID),
        generation=GENERATION,
        sources={"vda": "/images/new & fresh.qcow2"},
        nvram=None,
    )


def test_a_restored_disk_has_its_new_image_and_nothing_of_the_old_chain(restored):
    """Broken: libvirt would believe the old chain, and the VM would run on the wrong images."""
    found = disk(restored, "vda")
    assert [(source.attrib) for source in found.iter("source")] == [{"file": "/images/new & fresh.qcow2"}]
    assert found.find("backingStore") is None
    assert found.find("mirror") is None
    assert (found.get("type"), found.find("driver").get("type")) == ("file", "qcow2")
    assert domain_xml.disks(restored)[0].chain == ()


def test_what_else_a_restored_disk_had_it_keeps(restored):
    """Broken: a restored VM would find its disk with another serial, bus or cache mode, or not boot from it."""
    found = disk(restored, "vda")
    assert found.find("driver").attrib == {"name": "qemu", "type": "qcow2", "cache": "none", "discard": "unmap"}
    assert found.findtext("serial") == "KEEP-ME"
    assert found.find("boot").get("order") == "1"
    assert found.find("target").get("bus") == "virtio"


@pytest.mark.parametrize("target", ["vdb", "vdc", "sda"])
def test_disks_that_are_not_restored_are_left_alone(target, restored):
    """Broken: a disk outside the checkpoint would lose its source."""
    assert ET.tostring(disk(restored, target)) == ET.tostring(disk(DOMAIN, target))


def test_a_disk_that_was_a_device_becomes_a_file():
    """Broken: libvirt would look for an image file among the devices."""
    found = disk(
        domain_xml.restored(
            DOMAIN,
            identity=domain_xml.Identity("n", UUID),
            generation=GENERATION,
            sources={"vdb": "/images/b.qcow2"},
            nvram=None,
        ),
        "vdb",
    )
    assert found.get("type") == "file"
    assert found.find("source").attrib == {"file": "/images/b.qcow2"}
    assert found.find("driver").get("type") == "qcow2"


def test_a_disk_without_a_driver_gets_one():
    """Broken: libvirt would take the image for raw, and the guest would see its header."""
    bare = "<domain><name>a</name><uuid/><devices><disk type='file'><target dev='vda'/></disk></devices></domain>"
    found = disk(
        domain_xml.restored(
            bare, identity=domain_xml.Identity("a", UUID), generation=GENERATION, sources={"vda": "/x"}, nvram=None
        ),
        "vda",
    )
    assert found.find("driver").attrib == {"name": "qemu", "type": "qcow2"}


def test_the_name_and_the_rest_of_the_definition(restored):
    """Broken: a restore would define another VM, or lose what the administrator configured."""
    root = ET.fromstring(restored)
    assert root.findtext("name") == "web2"
    assert root.findtext("uuid") == "22222222-2222-4222-8222-222222222222"
    assert root.findtext("title") == "the web server"
    argument = root.find("{http://libvirt.org/schemas/domain/qemu/1.0}commandline/{*}arg")
    assert argument.get("value") == "-version"


def test_a_generation_id_is_added(restored):
    """Broken: the guest would not learn that it went back in time."""
    assert domain_xml.generation_id(DOMAIN) is None
    assert domain_xml.generation_id(restored) == GENERATION
    assert [child.tag for child in ET.fromstring(restored)][:3] == ["name", "genid", "uuid"]


@pytest.mark.parametrize("old", ["<genid>99999999-2222-3333-4444-555555555555</genid>", "<genid/>"])
def test_a_generation_id_is_replaced(old):
    """Broken: the guest would keep the old one, or libvirt refuse two."""
    xml = DOMAIN.replace("<memory", old + "<memory")
    xml = domain_xml.restored(xml, identity=domain_xml.Identity("web1", UUID), generation=GENERATION, sources={}, nvram=None)
    assert [element.text for element in ET.fromstring(xml).iter("genid")] == [GENERATION]


def test_a_definition_without_a_name_is_said_so():
    """Broken: a damaged record would end in an AttributeError."""
    with pytest.raises(ValueError, match="has no <name>"):
        domain_xml.restored("<domain/>", identity=domain_xml.Identity("a", UUID), generation=GENERATION, sources={}, nvram=None)


def test_a_snapshot_request_names_every_disk():
    """Broken: libvirt snapshots disks that are not named in a way of its own choice."""
    root = ET.fromstring(domain_xml.snapshot({"vda": "/i/a&b.qcow2", "vdb": "/i/b.qcow2"}, ("sda",)))
    found = {
        element.get("name"): (
            element.get("snapshot"),
            element.get("type"),
            getattr(element.find("driver"), "attrib", None),
            getattr(element.find("source"), "attrib", None),
        )
        for element in root.iterfind("./disks/disk")
    }
    assert root.tag == "domainsnapshot"
    assert found == {
        "vda": ("external", "file", {"type": "qcow2"}, {"file": "/i/a&b.qcow2"}),
        "vdb": ("external", "file", {"type": "qcow2"}, {"file": "/i/b.qcow2"}),
        "sda": ("no", None, None, None),
    }


def test_a_new_channel_is_found_again():
    """Broken: the port would be added under a name nobody looks for."""
    assert "io.quiesce.agent.0" in domain_xml.channels(
        f"<domain><devices>{domain_xml.channel('io.quiesce.agent.0')}</devices></domain>"
    )


@pytest.mark.parametrize(
    ("firmware", "expected"),
    [
        ("<nvram template='/t.fd'>/n/web1.fd</nvram>", "/n/web1.fd"),
        ("<nvram type='file'><source file='/n/web1.fd'/></nvram>", "/n/web1.fd"),
        ("<nvram template='/t.fd'/>", None),
        ("", None),
    ],
    ids=["as text", "as a source", "not made yet", "none"],
)
def test_where_the_uefi_variables_are(firmware, expected):
    """Broken: a checkpoint would be without them, and the VM restored to boot as it did before; or their file be removed."""
    xml = f"<domain><name>a</name><uuid>b</uuid><os>{firmware}</os><devices/></domain>"
    assert domain_xml.nvram(xml) == expected
    identity = domain_xml.Identity("a", "b")
    other = domain_xml.moved(xml, identity=identity, sources={}, nvram="/n/other.fd")
    assert domain_xml.nvram(other) == ("/n/other.fd" if firmware else None)
    assert ("template='/t.fd'" in firmware) == ('template="/t.fd"' in other)
    assert domain_xml.nvram(domain_xml.moved(xml, identity=identity, sources={}, nvram=None)) == expected


def test_a_disk_that_is_put_on_another_image_is_all_that_changes():
    """Broken: what an administrator configured would be lost with a checkpoint of a VM that is off."""
    changed = domain_xml.with_sources(DOMAIN, {"vda": "/images/overlay.qcow2"})
    assert [found.path for found in domain_xml.disks(changed)] == ["/images/overlay.qcow2", "/dev/vg/data", None, None]
    before, after = ET.fromstring(DOMAIN), ET.fromstring(changed)
    assert [child.tag for child in before] == [child.tag for child in after]
    for target in ("vdb", "vdc", "sda"):
        assert ET.tostring(disk(DOMAIN, target)) == ET.tostring(disk(changed, target))
    assert domain_xml.with_sources(changed, {}) == changed


def test_a_disk_that_a_checkpoint_leaves_out_is_as_the_vm_has_it_now():
    """Broken: a raw disk would be opened as qcow2, or an older disk come back and be written over."""
    now = DOMAIN.replace("/dev/vg/data", "/dev/vg/newer").replace("<shareable/>", "<serial>NEW</serial>")
    mixed = domain_xml.with_disks_of(DOMAIN, now, ("vdb", "vdx"))
    found = {item.target: item for item in domain_xml.disks(mixed)}
    assert found.keys() == {"vda", "vdb", "vdc", "sda"}
    assert (found["vdb"].path, found["vdb"].format, found["vdb"].shareable) == ("/dev/vg/newer", "raw", False)
    assert disk(mixed, "vdb").findtext("serial") == "NEW"
    assert found["vda"] == domain_xml.disks(DOMAIN)[0]


def test_a_snapshot_with_memory_says_where_it_goes():
    """Broken: libvirt would keep the memory in a place of its own, or not at all."""
    root = ET.fromstring(domain_xml.snapshot({"vda": "/i/a"}, (), "/i/a & b.memory"))
    assert root.find("memory").attrib == {"snapshot": "external", "file": "/i/a & b.memory"}
    assert ET.fromstring(domain_xml.snapshot({"vda": "/i/a"}, ())).find("memory") is None


def test_a_domain_to_merge_in_runs_nothing_and_reaches_nothing():
    """Broken: a guest would run on the images that are being merged."""
    root = ET.fromstring(domain_xml.helper("quiesce-merge-1", "qemu"))
    assert (root.get("type"), root.findtext("name")) == ("qemu", "quiesce-merge-1")
    assert {device.tag for device in root.find("devices")} <= {"controller", "memballoon"}


@pytest.mark.parametrize("read_only", [False, True])
def test_an_image_is_opened_in_it_as_what_it_is(read_only):
    """Broken: an image would be read as raw, or one that is only copied be locked against its VM."""
    xml = domain_xml.helper_disk("sda", domain_xml.Source("/i/a & b.qcow2"), read_only=read_only)
    (found,) = domain_xml.disks(f"<domain><devices>{xml}</devices></domain>")
    assert (found.target, found.path, found.format, found.read_only) == ("sda", "/i/a & b.qcow2", "qcow2", read_only)
    assert ET.fromstring(domain_xml.copy_target("/i/c & d")).find("source").get("file") == "/i/c & d"


def test_a_disk_goes_back_to_a_raw_image_or_a_block_device():
    """Broken: after a merge the VM would read a raw image as qcow2, or not start."""
    changed = domain_xml.with_sources(DOMAIN, {"vda": domain_xml.Source("/dev/vg/data", "raw", device=True)})
    found = next(disk for disk in domain_xml.disks(changed) if disk.target == "vda")
    assert (found.source_type, found.path, found.format) == ("block", "/dev/vg/data", "raw")
    assert domain_xml.raw_images(changed) == {"/dev/vg/data"}
    back = domain_xml.with_sources(changed, {"vda": "/images/overlay.qcow2"})
    found = next(disk for disk in domain_xml.disks(back) if disk.target == "vda")
    assert (found.source_type, found.path, found.format) == ("file", "/images/overlay.qcow2", "qcow2")


def test_what_a_definition_declares_raw_is_found_in_its_chains_too():
    """Broken: the header that a guest wrote would be believed."""
    below = "<backingStore type='block'><format type='raw'/><source dev='/dev/vg/a'/></backingStore>"
    xml = (
        "<domain><devices><disk type='file'><driver type='qcow2'/><source file='/i/a.qcow2'/><target dev='vda'/>"
        f"<backingStore type='file'><format type='qcow2'/><source file='/i/b.qcow2'/>{below}</backingStore></disk>"
        "<disk type='file'><driver type='raw'/><source file='/i/c.raw'/><target dev='vdb'/></disk></devices></domain>"
    )
    assert domain_xml.raw_images(xml) == {"/dev/vg/a", "/i/c.raw"}


def test_a_noted_chain_is_forgotten_where_it_names_our_images_and_only_there():
    """Broken: an image merged away would be kept for ever, or libvirt would start the VM on a chain that is no more."""

    def disk(target: str, below: str) -> str:
        chain = f"<backingStore type='file'><format type='qcow2'/><source file='{below}'/><backingStore/></backingStore>"
        return (
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/{target}'/>{chain}"
            f"<target dev='{target}'/></disk>"
        )

    xml = f"<domain><name>a</name><devices>{disk('vda', '/i/ours')}{disk('vdb', '/i/theirs')}</devices></domain>"
    changed = domain_xml.without_chains(xml, {"/i/ours", "/i/vdb"})
    assert changed is not None
    assert [(found.path, found.chain) for found in domain_xml.disks(changed)] == [("/i/vda", ()), ("/i/vdb", ("/i/theirs",))]
    assert domain_xml.without_chains(xml, {"/i/other"}) is None
