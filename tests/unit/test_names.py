"""model/names.py"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.model.errors import UsageError
from quiesce.model.names import (
    MAX_NAME,
    MAX_VM_NAME,
    CheckpointReference,
    check_checkpoint_name,
    check_directory,
    check_file_name,
    check_target,
    check_uuid,
    check_vm_name,
    default_checkpoint_name,
    file_stem,
    parse_reference,
)


@given(st.text("a@", min_size=1), st.text("b@", min_size=1))
def test_a_reference_is_divided_at_each_at(vm, checkpoint):
    """Broken: a checkpoint or a VM with an @ in its name could not be named."""
    text = f"{vm}@{checkpoint}"
    found = parse_reference(text)
    assert CheckpointReference(vm, checkpoint) in found
    assert [len(each.vm) for each in found] == sorted({len(each.vm) for each in found})
    assert {f"{each.vm}@{each.checkpoint}" for each in found} == {text}


@pytest.mark.parametrize("text", ["", "web1", "@", "web1@", "@before", "web1/before"])
def test_half_a_reference_is_a_usage_error_with_an_example(text):
    """Broken: `quiesce delete web1` could mean something."""
    with pytest.raises(UsageError) as refusal:
        parse_reference(text)
    assert "VM@CHECKPOINT" in refusal.value.hint


@pytest.mark.parametrize("name", ["a", "before upgrade", "x" * MAX_NAME, "größer", "中文", "a@b", "--odd"])
def test_ordinary_names_are_taken_as_they_are(name):
    """Broken: a user's name would be refused or changed."""
    assert check_checkpoint_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "\t", " a", "a ", "x" * (MAX_NAME + 1), "a\nb", "a\x1b[31m", "a\u202eb", "a\x00b", "a\u00a0b", "\ud800", "a\x7f"],
    ids=ascii,
)
def test_names_that_would_mislead_are_refused(name):
    """Broken: a name could not be typed again, or would disturb the terminal that shows it."""
    with pytest.raises(UsageError):
        check_checkpoint_name(name)


@given(st.datetimes(timezones=st.just(UTC)))
def test_the_default_name_is_allowed_and_needs_no_quotes(now):
    """Broken: a checkpoint without --name would fail, or its name need quoting."""
    name = check_checkpoint_name(default_checkpoint_name(now))
    assert not set(name) & set(" :@/'\"\\")


def test_default_names_sort_by_time():
    """Broken: a list by name would not be in order."""
    assert default_checkpoint_name(datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)) == "2026-02-03T04.05.06Z"


@pytest.mark.parametrize("name", ["web1", "a b", "Ünïcode 🙂", "x" * MAX_VM_NAME, "a.b", "-x", "web1.vda"])
def test_a_vm_may_have_a_name_that_libvirt_takes(name):
    """Broken: a VM could not be imported under the name that its user wants."""
    assert check_vm_name(name) == name


@given(st.text(max_size=300))
def test_no_name_leads_out_of_its_directory(text):
    """Broken: a stranger's name for a VM, a disk or a file would be a path."""
    for check in (check_vm_name, check_target, check_file_name, check_uuid):
        try:
            name = check(text)
        except UsageError:
            continue
        assert name == text
        assert name.strip() not in ("", ".", "..")
        assert not {"/", "\0", "\n"} & set(name)
        assert len(name.encode()) <= MAX_VM_NAME
    assert len(f"{file_stem(text)}.vda.0123456789ab.qcow2".encode()) < 255
    assert "/" not in file_stem(text)


@given(st.text(st.sampled_from("/.ab\n"), max_size=12))
def test_a_directory_has_one_spelling(text):
    """Broken: `--to` could lead elsewhere than it says."""
    try:
        path = check_directory(text)
    except UsageError:
        return
    assert path.startswith("/")
    assert not path.endswith("/")
    assert not {".", "..", ""} & set(path.split("/")[1:])


@pytest.mark.parametrize("text", ["0B5BD3E8-6e0c-4a0e-9a43-5f0ad0c3d6f1", "../", "0b5bd3e86e0c4a0e9a435f0ad0c3d6f1", "", "a\n"])
def test_a_uuid_is_written_as_libvirt_does(text):
    """Broken: a UUID of a stranger would be part of a path."""
    with pytest.raises(UsageError):
        check_uuid(text)
    assert check_uuid("0b5bd3e8-6e0c-4a0e-9a43-5f0ad0c3d6f1")
