#!/usr/bin/python3
"""A writer in Python, for an application that `shopctl` pauses and resumes. As root:

PYTHONPATH=/usr/local/lib/quiesce/quiesce-agent.pyz python3 example.py
"""

import signal
import subprocess
import sys

from quiesce.writer import Writer, run


class Shop(Writer):
    name = "shop"
    level = "front-end"
    paths = ("/srv/shop",)

    def hold(self, timeout_ms):
        paused = subprocess.run(["shopctl", "pause"], check=True, timeout=timeout_ms / 1000, capture_output=True, text=True)
        return {"position": {"order": paused.stdout.strip()}}

    def release(self):
        subprocess.run(["shopctl", "resume"], check=True)


signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # `run` then lets go and takes leave
run(Shop())
