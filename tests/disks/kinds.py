"""The kinds of disks that an administrator has, and what quiesce does with each.

`tests/disks/test_disk_kinds.py` runs the verbs on each. The table of docs/storage.md is made from these rows:
`python -m tests.disks.kinds` writes it, and tests/unit/test_kinds.py compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from tests.disks import making
from tests.disks.making import Make

DOCUMENT = Path(__file__).parents[2] / "docs/storage.md"
BEGIN, END = "<!-- made by: python -m tests.disks.kinds -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Kind:
    name: str
    """For the test's id."""
    what: str
    """For the table of the documentation."""
    make: Make
    remark: str = ""
    """What an administrator should know."""
    refused: str | None = None
    """What the refusal says, as a regular expression; None: every verb works."""
    way_out: str = ""
    """Of a refusal, for the table."""
    lacking: Callable[[], str | None] = lambda: None
    """Why this host cannot have such a disk, if it cannot."""
    starts: bool = True
    """Whether a VM with it starts on any host."""
    shortened: bool = False
    """Whether quiesce makes the chain shorter, so that the VM does not need its first image in the end."""
    rare: bool = False
    """Whether only a long run tries it: a short run has one much like it."""


KINDS = (
    Kind("qcow2", "qcow2 file", making.qcow2(), rare=True),
    Kind("raw", "raw file", making.raw, "A merge of the last checkpoint writes into the raw file again."),
    Kind(
        "odd-sectors",
        "raw file with an odd number of sectors",
        making.odd_sectors,
        "The guest's disk keeps its size. An export needs a disk of 200 KB at least.",
    ),
    Kind("raw-elsewhere", "raw file, overlays in another directory", making.raw_elsewhere, "`--overlays DIRECTORY`", rare=True),
    Kind(
        "raw-with-header",
        "raw file whose guest wrote the header of a qcow2 image into it",
        making.raw_with_header,
        "It stays raw: the definition, the record or the overlay's header says so, never the first bytes.",
    ),
    Kind("block", "block device (iSCSI, zvol, multipath, partition)", making.block, "It needs `--overlays DIRECTORY`."),
    Kind(
        "block-with-header",
        "block device whose guest wrote such a header",
        making.block_with_header,
        "It stays raw, too.",
        rare=True,
    ),
    Kind(
        "block-by-link", "block device by a link (/dev/disk/by-id/..., /dev/vg/lv)", making.block_by_link, "The name is kept."
    ),
    Kind(
        "block-by-file-link",
        "block device by a link in a directory of images",
        making.block_by_link_of_files,
        "As above.",
        rare=True,
    ),
    Kind(
        "block-beside-a-file",
        "block device beside a disk that is a file",
        making.block_beside_a_file,
        "Without `--overlays`, the overlays go into the directory of the file.",
        rare=True,
    ),
    Kind("lvm", "LVM volume", making.lvm(), "As every block device.", lacking=making.no_lvm),
    Kind("lvm-thin", "LVM thin volume", making.lvm("thin"), "As every block device.", lacking=making.no_lvm, rare=True),
    Kind(
        "data-file", "qcow2 with a data file", making.data_file(), "A change of the data file by another program is not seen."
    ),
    Kind("data-file-raw", "qcow2 with a raw data file", making.data_file("data_file_raw=on"), "As above.", rare=True),
    Kind(
        "volume-qcow2",
        "volume of a storage pool, qcow2",
        making.pool_volume("qcow2"),
        "The definition names the file afterwards.",
    ),
    Kind("volume-raw", "volume of a storage pool, raw", making.pool_volume("raw"), "As above.", rare=True),
    Kind("nbd-base", "qcow2 over an NBD export", making.nbd_base, "The export is never written."),
    Kind("on-raw", "qcow2 over a raw template", making.over("raw"), "The template is never written."),
    Kind("on-vmdk", "qcow2 over a VMDK template", making.over("vmdk"), "As above.", rare=True),
    Kind(
        "on-vpc", "qcow2 over a VHD template", making.over("vpc", "-o", "subformat=fixed,force_size=on"), "As above.", rare=True
    ),
    Kind(
        "deep", "chain of 18 images", making.chain_of(18), "The first checkpoint makes it shorter, by a copy.", shortened=True
    ),
    Kind(
        "snapshot",
        "qcow2 with internal snapshots",
        making.changed_by("snapshot", "-c", "before", "{path}"),
        "They stay in the file.",
    ),
    Kind(
        "bitmap",
        "qcow2 with bitmaps",
        making.changed_by("bitmap", "--add", "{path}", "b0"),
        "They stay in the file.",
        rare=True,
    ),
    Kind("compat", "qcow2, version 2", making.qcow2("-o", "compat=0.10"), rare=True),
    Kind("clusters-512", "qcow2, clusters of 512 bytes", making.qcow2("-o", "cluster_size=512"), rare=True),
    Kind("clusters-2m", "qcow2, clusters of 2 MiB", making.qcow2("-o", "cluster_size=2M"), rare=True),
    Kind("subclusters", "qcow2, extended L2 entries", making.qcow2("-o", "extended_l2=on"), rare=True),
    Kind("preallocated", "qcow2, preallocated", making.qcow2("-o", "preallocation=full"), rare=True),
    Kind("lazy", "qcow2, lazy refcounts", making.qcow2("-o", "lazy_refcounts=on"), rare=True),
    Kind("scsi", "disk of a SCSI controller", making.on_bus("scsi"), rare=True),
    Kind("sata", "disk of a SATA controller", making.on_bus("sata"), rare=True),
    # -- refused
    Kind(
        "block-without-directory",
        "block device alone, and no `--overlays`",
        making.block_without_directory,
        refused=r"is a block device, and nothing says .*--overlays DIRECTORY",
        way_out="`quiesce settings VM --overlays DIRECTORY`",
    ),
    Kind(
        "qcow2-on-block",
        "qcow2 on a block device",
        making.qcow2_on_block,
        refused="qcow2 on a block device, which cannot grow",
        way_out="convert it to raw, or to a file",
    ),
    Kind(
        "too-deep",
        "chain of more than 21 images",
        making.chain_of(22),
        refused="has 22 images and could not be made shorter",
        way_out="`qemu-img convert`, `virsh blockcopy`",
    ),
    Kind("lun", "passed-through LUN (`device='lun'`)", making.lun, refused="passed-through LUN", way_out="`device='disk'`"),
    Kind(
        "network",
        "network disk (NBD, RBD, iSCSI of QEMU)",
        making.nbd_disk,
        refused="type network; only files and block devices",
        way_out="map it on the host (`rbd map`), or leave it out",
    ),
    Kind(
        "volume-inactive",
        "volume of a pool that is not active",
        making.pool_volume("qcow2", active=False),
        refused="virsh pool-start",
        way_out="start the pool",
        starts=False,
    ),
    Kind(
        "shared",
        "shared disk",
        making.with_element("<shareable/>", "raw"),
        refused="shared between VMs",
        way_out="leave it out",
    ),
    Kind(
        "read-only",
        "read-only disk",
        making.with_element("<readonly/>"),
        refused="it is read-only",
        way_out="attach it as a cdrom",
    ),
    Kind(
        "encrypted",
        "encrypted disk (LUKS of QEMU's), in qcow2 or raw",
        making.with_element(f"<encryption format='luks'><secret type='passphrase' uuid='{UUID(int=1)}'/></encryption>", "raw"),
        refused="it is encrypted",
        way_out="encrypt in the guest; or leave it out",
        starts=False,
    ),
    Kind("part", "part of a file (`<slices>`)", making.part, refused="a part of a file", way_out="leave it out"),
    Kind(
        "no-format",
        "image that does not record the format of its backing file",
        making.forgetful,
        refused="does not record the format .*qemu-img rebase -u -f qcow2 -F qcow2",
        way_out="`qemu-img rebase -u`, as the refusal says",
    ),
    Kind("transient", "transient disk", making.with_element("<transient/>"), refused="it is transient", way_out="leave it out"),
    Kind("vmdk", "VMDK file", making.of_format("vmdk"), refused="format is vmdk; convert it", way_out="`qemu-img convert`"),
    Kind(
        "vdi", "VDI file", making.of_format("vdi"), refused="format is vdi; convert it", way_out="`qemu-img convert`", rare=True
    ),
    Kind(
        "qed", "QED file", making.of_format("qed"), refused="format is qed; convert it", way_out="`qemu-img convert`", rare=True
    ),
    Kind(
        "vhost-user",
        "vhost-user disk",
        making.xml_only(
            "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/><source type='unix' path='/run/none'/>"
            "<target dev='vda' bus='virtio'/></disk>",
            "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
        ),
        refused="type vhostuser; only files and block devices",
        way_out="leave it out",
        starts=False,
    ),
    Kind(
        "nvme",
        "NVMe device of QEMU's own driver",
        making.xml_only(
            "<disk type='nvme' device='disk'><driver name='qemu' type='raw'/><source type='pci' namespace='1' managed='no'>"
            "<address domain='0x0000' bus='0x7f' slot='0x00' function='0x0'/></source><target dev='vda' bus='virtio'/></disk>"
        ),
        refused="type nvme; only files and block devices",
        way_out="leave it out, or attach it as a block device",
        starts=False,
    ),
)


def table() -> str:
    """The table of the documentation."""
    lines = ["| disk | | why, or what to know |", "|---|---|---|"]
    for kind in KINDS:
        if kind.refused is None:
            lines.append(f"| {kind.what} | works | {kind.remark} |")
        else:
            lines.append(f"| {kind.what} | refused | way out: {kind.way_out} |")
    return "\n".join(lines) + "\n"


def with_table(document: str) -> str:
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
