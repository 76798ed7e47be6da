"""Disposable virtual machines for the demo, the tests and the benchmarks.

A Debian 13 guest with PostgreSQL 17 is built once and cached under the hash of its recipe. Machines run on temporary overlays
of it, and are removed when their `with` block ends, also after an error. Only this room may call qemu-img and similar programs.
"""

from lab.image import Image, build
from lab.machine import Machine, saved
from lab.ram import SavedMachine

__all__ = ["Image", "Machine", "SavedMachine", "build", "saved"]
