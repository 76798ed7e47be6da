"""storage/backing.py: what a header's name of a backing file means, by QEMU's own account."""

from __future__ import annotations

import pytest

from quiesce.storage.backing import named_file


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("/images/base.qcow2", "/images/base.qcow2"),
        ("base.qcow2", "/here/base.qcow2"),
        ("../base.qcow2", "/here/../base.qcow2"),
        ("a/b:c.qcow2", "/here/a/b:c.qcow2"),
        ("file:/images/base.qcow2", "/images/base.qcow2"),
        ("file:base.qcow2", "/here/base.qcow2"),
        ("file:///images/base.qcow2", "/images/base.qcow2"),
        ("nbd://127.0.0.1:10889/base", "nbd://127.0.0.1:10889/base"),
        ("rbd:pool/base", "rbd:pool/base"),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/images/base.qcow2"}}', "/images/base.qcow2"),
        ('json:{"driver":"qcow2","file.driver":"file","file.filename":"/images/base.qcow2"}', "/images/base.qcow2"),
        ('json:{"file.filename":"base.qcow2"}', "/here/base.qcow2"),
        ('json:{"driver":"nbd","server":{"type":"inet","host":"h","port":"1"}}', None),
        ("json:{", None),
        ("json:" + "[" * 5000, None),
    ],
)
def test_the_file_that_a_header_names(text, meant):
    """Broken: what a chain consists of would be mistaken, and images be removed that it needs."""
    assert named_file(text, "/here") == (meant or text)
