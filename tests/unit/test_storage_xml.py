"""hypervisor/storage_xml.py"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from quiesce.hypervisor import storage_xml
from quiesce.model.chains import Image


def test_an_overlay_is_what_was_measured_to_be_best():
    """Broken: first writes would copy whole clusters, or the overlay would lie on another image."""
    root = ET.fromstring(storage_xml.overlay_volume("a<b.qcow2", 10 * 2**30, "/i/base.qcow2", "qcow2"))
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
    root = ET.fromstring(storage_xml.raw_volume("m.json", 123))
    assert [root.findtext(tag) for tag in ("name", "capacity", "allocation")] == ["m.json", "123", "123"]
    assert root.find("target/format").get("type") == "raw"


@pytest.mark.parametrize(
    ("kind", "expected"), [("dir", "/images"), ("fs", "/images"), ("netfs", "/images"), ("logical", None), ("rbd", None)]
)
def test_only_pools_of_files_have_a_directory(kind, expected):
    """Broken: an overlay would be made in a volume group, or beside the images in a pool of its own."""
    xml = f"<pool type='{kind}'><name>p</name><target><path>/images</path></target></pool>"
    assert storage_xml.pool_directory(xml) == expected


def test_a_pool_of_ours_is_one_of_files():
    """Broken: a directory without a pool could not be used."""
    xml = storage_xml.directory_pool("quiesce-1", "/srv/a & b")
    assert storage_xml.pool_directory(xml) == "/srv/a & b"
    assert ET.fromstring(xml).findtext("name") == "quiesce-1"


VOLUME = """
<volume type='file'>
  <name>top.qcow2</name>
  <key>/i/top.qcow2</key>
  <capacity unit='bytes'>10737418240</capacity>
  <allocation unit='bytes'>200704</allocation>
  <physical unit='bytes'>393216</physical>
  <target>
    <path>/i/top &amp; all.qcow2</path>
    <format type='qcow2'/>
    <permissions><mode>0600</mode><owner>64055</owner><group>107</group><label>system_u:c1</label></permissions>
    <timestamps><atime>3.1</atime><mtime>1767225600.123456789</mtime><ctime>5.9</ctime></timestamps>
  </target>
  <backingStore><path>/i/base.qcow2</path><format type='qcow2'/></backingStore>
</volume>
"""


def test_a_volume_is_read_as_it_is():
    """Broken: an image that another still needs would be removed, or what was written since a restore not be seen."""
    assert storage_xml.volume(VOLUME) == Image(
        path="/i/top & all.qcow2",
        format="qcow2",
        backing="/i/base.qcow2",
        capacity=10 * 2**30,
        allocation=200704,
        written="1767225600.123456789",
        size=393216,
        changed="5.9",
        access="64055 107 0600 system_u:c1",
        backing_format="qcow2",
    )


@pytest.mark.parametrize("backing", ["<backingStore/>", ""])
def test_what_a_volume_does_not_say(backing):
    """Broken: one file of a kind libvirt does not know would keep every operation from reading its directory."""
    xml = f"<volume><name>a</name><target><path>/i/a</path></target>{backing}</volume>"
    assert storage_xml.volume(xml) == Image("/i/a", "raw", None, 0, 0, "")


def test_an_overlay_is_found_on_what_it_was_made_on():
    """Broken: the headers would be read otherwise than they are written."""
    found = storage_xml.volume(storage_xml.overlay_volume("a", 7 * 1024, "/i/b", "qcow2"))
    assert (found.format, found.backing, found.capacity) == ("qcow2", "/i/b", 7 * 1024)


@pytest.mark.parametrize(("capacity", "said"), [(8_000_000, None), (1, None), (2**30, str(2**30))])
def test_an_overlay_is_exactly_as_large_as_what_it_was_made_on(capacity, said):
    """Broken: libvirt would round the size up, and a guest's disk be one sector larger after a checkpoint."""
    root = ET.fromstring(storage_xml.overlay_volume("a", capacity, "/i/b", "raw"))
    assert root.findtext("capacity") == said


def test_a_flat_image_lies_on_nothing_and_is_read_by_old_programs():
    """Broken: an exported disk would lack what was below it, or need a QEMU of our own time."""
    xml = storage_xml.flat_volume("a<b.qcow2", 2**30)
    root = ET.fromstring(xml)
    assert (root.findtext("name"), root.findtext("capacity"), root.findtext("allocation")) == ("a<b.qcow2", str(2**30), "0")
    assert storage_xml.volume(xml).format == "qcow2"
    assert root.find("backingStore") is None
    assert root.find("target/features") is None
