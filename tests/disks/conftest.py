"""Real disks and a real QEMU, and no guest in it: several of these can run beside each other."""

from __future__ import annotations

from tests.host import forest, nothing_left_behind, quiesce

__all__ = ["forest", "nothing_left_behind", "quiesce"]
