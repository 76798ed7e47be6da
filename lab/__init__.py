"""Disposable virtual machines for the demo, the tests and the benchmarks.

A Debian 13 guest with PostgreSQL 17 is built once and cached by the hash of its recipe; machines run on throwaway overlays of
it and are gone when their `with` block ends, however it ends. Only this room may call qemu-img and friends.
"""

from lab.image import Image, build
from lab.machine import Machine, saved
from lab.ram import SavedMachine

__all__ = ["Image", "Machine", "SavedMachine", "build", "saved"]
