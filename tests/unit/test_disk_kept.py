"""hypervisor/domain_xml.py: a disk gets another image, and keeps all else that its definition says (libvirt's formatdomain,
"Hard drives, floppy disks, CDROMs")."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.hypervisor import domain_xml
from tests.strategies import examples

NEW = "/images/new & fresh.qcow2"
ATTRIBUTES = {
    "disk": ("device=disk", "model=virtio-transitional", "rawio=yes", "sgio=filtered", "snapshot=external", "queues=2"),
    "driver": (
        "name=qemu", "cache=none", "error_policy=stop", "rerror_policy=report", "io=native", "ioeventfd=on", "event_idx=off",
        "copy_on_read=on", "discard=unmap", "discard_no_unref=on", "detect_zeroes=unmap", "iothread=2", "queues=4",
        "queue_size=256", "iommu=on", "ats=on", "packed=on", "page_per_vq=on",
    ),
}  # fmt: skip
CHILDREN = (
    "<auth username='me'><secret type='ceph' usage='u'/></auth>",
    "<alias name='ua-root'/>",
    "<boot order='3' loadparm='2'/>",
    "<serial>KEEP-ME</serial>",
    "<wwn>5000c50015ea71ac</wwn>",
    "<vendor>QUIESCE</vendor>",
    "<product>DISK</product>",
    "<address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>",
    "<blockio logical_block_size='512' physical_block_size='4096' discard_granularity='4096'/>",
    "<geometry cyls='16383' heads='16' secs='63' trans='lba'/>",
    "<iotune><total_bytes_sec>10000000</total_bytes_sec><read_iops_sec>400</read_iops_sec><group_name>g</group_name></iotune>",
    "<throttlefilters><filter group='limit0'/></throttlefilters>",
    "<acpi index='4'/>",
    "<transient/>",
    "<encryption format='luks'><secret type='passphrase' uuid='u'/></encryption>",
    "<statistics><statistic interval='1'/></statistics>",
    "<something of='a newer libvirt'><below/></something>",
)
IN_DRIVER = (
    "<iothreads><iothread id='1'><queue id='0'/></iothread></iothreads>",
    "<metadata_cache><max_size unit='MiB'>4</max_size></metadata_cache>",
    "<statistics><statistic interval='1'/></statistics>",
)
IN_SOURCE = (
    "<seclabel model='dac' relabel='no'/>",
    "<seclabel model='selinux' relabel='yes'><label>l</label></seclabel>",
    "<encryption format='luks' engine='qemu'><secret type='passphrase' uuid='u'/></encryption>",
    "<encryption format='luks' engine='librbd'><secret type='passphrase' usage='u'/></encryption>",
)
WHERE_IT_WAS = (
    ("file", "<source file='/old' index='3' fdgroup='g'>{}</source>"),
    ("block", "<source dev='/dev/vg/old'><reservations managed='yes'/>{}</source>"),
    ("volume", "<source pool='p' volume='v' mode='host'>{}</source>"),
    ("network", "<source protocol='https' name='x' query='a=b' tls='yes'><host name='h' port='1'/><ssl verify='no'/>"
     "<cookies><cookie name='a'>b</cookie></cookies><readahead size='64'/><timeout seconds='6'/>{}</source>"),
    ("nvme", "<source type='pci' managed='yes' namespace='1'><address domain='0' bus='1' slot='0' function='0'/>{}</source>"),
)  # fmt: skip
STALE = ("", "<backingStore/>", "<backingStore type='file'><format type='raw'/><source file='/b'/></backingStore>")


def chosen(among: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(among), unique=True)


def attributes(words: list[str]) -> str:
    return "".join(f" {name}='{value}'" for name, _, value in (word.partition("=") for word in words))


@st.composite
def definitions(draw: st.DrawFn) -> str:
    kind, source = draw(st.sampled_from(WHERE_IT_WAS))
    driver = f"<driver type='raw'{attributes(draw(chosen(ATTRIBUTES['driver'])))}>{''.join(draw(chosen(IN_DRIVER)))}</driver>"
    children = [driver, source.format("".join(draw(chosen(IN_SOURCE)))), draw(st.sampled_from(STALE))]
    children += ["<target dev='vda' bus='virtio' tray='open' rotation_rate='1'/>", *draw(chosen(CHILDREN))]
    disk = (
        f"<disk type='{kind}'{attributes(draw(chosen(ATTRIBUTES['disk'])))}>{''.join(draw(st.permutations(children)))}</disk>"
    )
    return (
        f"<domain type='kvm'><name>a</name><uuid>b</uuid><devices>{disk}"
        "<disk type='file'><source file='/c'/><target dev='vdb'/></disk></devices></domain>"
    )


def expected(xml: str) -> ET.Element:
    """What the definition should become, written down once more, from its end: what goes, goes."""
    root = ET.fromstring(xml)
    disk = copy.deepcopy(root.findall("./devices/disk")[0])
    disk.set("type", "file")
    for stale in disk.findall("backingStore"):
        disk.remove(stale)
    disk.find("driver").set("type", "qcow2")
    source = disk.find("source")
    kept = [child for child in source if child.tag in ("seclabel", "encryption")]
    source.clear()
    source.set("file", NEW)
    source.extend(kept)
    return disk


@examples(300)
@given(definitions())
def test_a_disk_keeps_all_that_its_definition_says(xml):
    """Broken: a restored disk would lose its limits, its serial, its place on the bus, its encryption or its label."""
    changed = ET.fromstring(domain_xml.with_sources(xml, {"vda": NEW}))
    first, second = changed.findall("./devices/disk")
    assert ET.tostring(first) == ET.tostring(expected(xml))
    assert ET.tostring(second) == ET.tostring(ET.fromstring(xml).findall("./devices/disk")[1])


def test_a_disk_that_has_its_device_again():
    """Broken: a disk would be read as a file, or libvirt give away a device that its administrator keeps."""
    label = '<seclabel model="dac" relabel="no" />'
    disk = '<disk type="{}"><source {}="{}"{}>{}</source><target dev="vda" /><driver name="qemu" type="{}" /></disk>'
    xml = "<domain><devices>{}</devices></domain>"
    device = xml.format(disk.format("block", "dev", "/dev/vg/a", ' startupPolicy="optional"', label, "raw"))
    overlay = xml.format(disk.format("file", "file", "/i/new", ' startupPolicy="optional"', label, "qcow2"))
    assert domain_xml.with_sources(device, {"vda": "/i/new"}) == overlay
    assert domain_xml.with_sources(overlay, {"vda": domain_xml.Source("/dev/vg/a", "raw", device=True)}) == device


def test_what_becomes_of_a_disk_whose_medium_may_be_missing():
    """Broken: a VM that starts without this disk, because its definition allows it, would not start after a checkpoint."""
    xml = (
        "<domain><devices><disk type='file'><source file='/a' startupPolicy='optional'/><target dev='vda'/></disk></devices>"
        "</domain>"
    )
    source = ET.fromstring(domain_xml.with_sources(xml, {"vda": NEW})).find("./devices/disk/source")
    assert source.attrib == {"file": NEW, "startupPolicy": "optional"}


ENCRYPTION = "<encryption format='luks'><secret type='passphrase' uuid='u'/></encryption>"
SLICES = "<slices><slice type='storage' offset='12345' size='123'/></slices>"


@pytest.mark.parametrize(("what", "xml"), [("encrypted", ENCRYPTION), ("sliced", SLICES)])
@pytest.mark.parametrize("place", ["disk", "source", "below", "far below"])
def test_what_an_overlay_cannot_have_is_seen_wherever_it_stands(what, xml, place):
    """Broken: a disk would be overlaid in plain text, or its overlay read the wrong part of a file."""
    level = "<backingStore type='file'><format type='qcow2'/><source file='/b'>{}</source>{}</backingStore>"
    below = level.format(xml if place == "below" else "", level.format(xml, "") if place == "far below" else "")
    source = f"<source file='/a'>{xml if place == 'source' else ''}</source>"
    disk = f"<disk type='file'>{source}{below}<target dev='vda'/>{xml if place == 'disk' else ''}</disk>"
    plain = "<disk type='file'><source file='/c'/><target dev='vdb'/></disk>"
    found = domain_xml.disks(f"<domain><devices>{disk}{plain}</devices></domain>")
    assert [getattr(each, what) for each in found] == [True, False]
