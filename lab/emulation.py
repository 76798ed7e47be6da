"""What guests are given where the machine has no KVM and each of their processors is emulated."""

from __future__ import annotations

import os
from pathlib import Path

QUICK = (
    "quiet loglevel=3 systemd.show_status=0 mitigations=off nokaslr tsc=reliable no_timer_check cryptomgr.notests"
    " init_on_alloc=0 audit=0 nowatchdog"
)
"""Kernel options of guests. Without KVM they take a fifth of what a boot costs."""
EMULATED = "<vcpu>1</vcpu><cpu mode='custom' match='exact'><model fallback='allow'>qemu64</model></cpu>"
"""Where processors are emulated, two cost half as much again as one for whatever a guest does, as they wait for each other; and
what newer ones have costs more than it saves."""


SLOWER = 10
"""How many times slower an emulated guest is, about."""


def client_pause_s(with_kvm: float) -> float:
    """How long a client in a guest waits between two writes, in seconds. A client that does not wait leaves an emulated
    guest no time for whoever shall hold its applications."""
    return with_kvm if kvm_works() else SLOWER * with_kvm


def kvm_works() -> bool:
    """Whether KVM can run a guest. /dev/kvm alone does not tell: it may open and still not run an ordinary kernel; so the
    processor's flags are checked, too."""
    flags = Path("/proc/cpuinfo").read_text()
    return os.access("/dev/kvm", os.W_OK) and (" vmx" in flags or " svm" in flags)
