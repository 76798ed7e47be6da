"""Entry point of the zipapp: `quiesce-agent.pyz DEVICE`, or `--precompile` when it is installed."""

import sys

from quiesce.agent.service import serve
from quiesce.wire.messages import DEVICE

if __name__ == "__main__":
    if sys.argv[1:] == ["--precompile"]:
        from quiesce.agent.precompile import precompile

        precompile(sys.argv[0])
    else:
        serve(sys.argv[1] if len(sys.argv) > 1 else DEVICE)
