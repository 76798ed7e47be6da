"""Runs a command, and reaps whatever it and its daemons leave behind: `python3 reaper.py COMMAND...`.

libvirt waits for a stopped QEMU until it has been reaped. Where no systemd runs, the first process may do that only every other
second, and each stop of a VM takes as long. Ends when the last of its descendants has.
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
