"""Entry point of the zipapp.

quiesce-agent.pyz [DEVICE]                the service
quiesce-agent.pyz --install               installs the agent in this machine, or updates it
quiesce-agent.pyz --hook freeze|thaw ...  holds and releases for other platforms' snapshots
"""

import sys

from quiesce.wire.messages import DEVICE

if __name__ == "__main__":
    if sys.argv[1:2] == ["--install"]:
        from quiesce.agent.install import install

        print("\n".join(install()))
    elif sys.argv[1:2] == ["--hook"]:
        from quiesce.agent import hook

        sys.exit(hook.main(sys.argv[2:]))
    else:
        from quiesce.agent.service import serve

        serve(sys.argv[1] if len(sys.argv) > 1 else DEVICE)
