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


def disk(xml: str, target: str) -> ET.Element:
    return next(found for found in ET.fromstring(xml).iterfind("./devices/disk") if found.find("target").get("dev") == target)


def test_disks_are_read_as_they_are():
    """Broken: a disk that cannot be checkpointed would be taken for one that can, or its chain for another."""
    assert domain_xml.disks(DOMAIN) == (
        Disk("vda", "disk", "file", "/images/top.qcow2", "qcow2", read_only=False, shareable=False, mirrored=True,
             chain=("/images/middle.qcow2", "/dev/vg/base"), mirror="/images/copy.qcow2"),
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
    return domain_xml.restored(DOMAIN, name="web2", generation=GENERATION, sources={"vda": "/images/new & fresh.qcow2"})


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
    found = disk(domain_xml.restored(DOMAIN, name="n", generation=GENERATION, sources={"vdb": "/images/b.qcow2"}), "vdb")
    assert found.get("type") == "file"
    assert found.find("source").attrib == {"file": "/images/b.qcow2"}
    assert found.find("driver").get("type") == "qcow2"


def test_a_disk_without_a_driver_gets_one():
    """Broken: libvirt would take the image for raw, and the guest would see its header."""
    bare = "<domain><name>a</name><devices><disk type='file'><target dev='vda'/></disk></devices></domain>"
    found = disk(domain_xml.restored(bare, name="a", generation=GENERATION, sources={"vda": "/x"}), "vda")
    assert found.find("driver").attrib == {"name": "qemu", "type": "qcow2"}


def test_the_name_and_the_rest_of_the_definition(restored):
    """Broken: a restore would define another VM, or lose what the administrator configured."""
    root = ET.fromstring(restored)
    assert root.findtext("name") == "web2"
    assert root.findtext("uuid") == "11111111-2222-3333-4444-555555555555"
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
    xml = domain_xml.restored(xml, name="web1", generation=GENERATION, sources={})
    assert [element.text for element in ET.fromstring(xml).iter("genid")] == [GENERATION]


def test_a_definition_without_a_name_is_said_so():
    """Broken: a damaged record would end in an AttributeError."""
    with pytest.raises(ValueError, match="without <name>"):
        domain_xml.restored("<domain/>", name="a", generation=GENERATION, sources={})


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


def test_an_overlay_is_what_was_measured_to_be_best():
    """Broken: first writes would copy whole clusters, or the overlay would lie on another image."""
    root = ET.fromstring(domain_xml.overlay_volume("a<b.qcow2", 10 * 2**30, "/i/base.qcow2", "qcow2"))
    assert root.findtext("name") == "a<b.qcow2"
    assert int(root.findtext("capacity")) == 10 * 2**30
    assert root.findtext("allocation") == "0"
    assert root.find("target/format").get("type") == "qcow2"
    assert root.find("target/features/extended_l2") is not None
    assert (root.findtext("target/clusterSize"), root.find("target/clusterSize").get("unit")) == ("128", "KiB")
    assert root.findtext("backingStore/path") == "/i/base.qcow2"
    assert root.find("backingStore/format").get("type") == "qcow2"


def test_a_raw_volume_has_its_size_from_the_start():
    """Broken: a manifest could not be uploaded into it."""
    root = ET.fromstring(domain_xml.raw_volume("m.json", 123))
    assert [root.findtext(tag) for tag in ("name", "capacity", "allocation")] == ["m.json", "123", "123"]
    assert root.find("target/format").get("type") == "raw"


@pytest.mark.parametrize(
    ("kind", "expected"), [("dir", "/images"), ("fs", "/images"), ("netfs", "/images"), ("logical", None), ("rbd", None)]
)
def test_only_pools_of_files_have_a_directory(kind, expected):
    """Broken: an overlay would be made in a volume group, or beside the images in a pool of its own."""
    xml = f"<pool type='{kind}'><name>p</name><target><path>/images</path></target></pool>"
    assert domain_xml.pool_directory(xml) == expected


def test_a_pool_of_ours_is_one_of_files():
    """Broken: a directory without a pool could not be used."""
    xml = domain_xml.directory_pool("quiesce-1", "/srv/a & b")
    assert domain_xml.pool_directory(xml) == "/srv/a & b"
    assert ET.fromstring(xml).findtext("name") == "quiesce-1"


@pytest.mark.parametrize(
    ("backing", "expected"),
    [("<backingStore><path>/i/base.qcow2</path></backingStore>", "/i/base.qcow2"), ("<backingStore/>", None), ("", None)],
)
def test_what_a_volume_lies_on(backing, expected):
    """Broken: an image that another still needs would be removed."""
    assert domain_xml.volume_backing(f"<volume><name>a</name>{backing}</volume>") == expected


def test_a_new_channel_is_found_again():
    """Broken: the port would be added under a name nobody looks for."""
    assert "io.quiesce.agent.0" in domain_xml.channels(
        f"<domain><devices>{domain_xml.channel('io.quiesce.agent.0')}</devices></domain>"
    )
