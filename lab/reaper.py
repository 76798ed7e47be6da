"""Runs a command, and reaps its orphaned child processes: `python3 reaper.py COMMAND...`.

libvirt waits until a stopped QEMU has been reaped. Without systemd, the machine's first process may reap only every other
second, and each stop of a VM would take as long. This program ends when its last descendant has ended.
"""

import ctypes
import os
import signal
import sys

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.fork() == 0:
        os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
