"""The short form of script/chaos: whatever is killed when, nothing is lost."""

from __future__ import annotations

import json
import subprocess

import pytest

from lab import Image


@pytest.mark.alone
@pytest.mark.timeout(1500)
def test_chaos(image: Image) -> None:
    """Every step of every verb's journal, random moments, libvirt and QEMU in the middle of merges, a real guest."""
    finished = subprocess.run(["script/chaos", "--json", "--quick"], capture_output=True, text=True, check=False, timeout=1400)
    print(finished.stdout, finished.stderr)
    assert finished.returncode == 0
    result = json.loads(finished.stdout)
    assert result["steps"] > 100
    assert result["kills"] > result["steps"]
    assert not any(result[key] for key in ("lost", "orphans", "unbootable", "frozen_over_deadline"))
