"""Entry point of the zipapp: `quiesce-agent.pyz [DEVICE]`."""

import sys

from quiesce.agent.service import serve
from quiesce.wire.messages import DEVICE

if __name__ == "__main__":
    serve(sys.argv[1] if len(sys.argv) > 1 else DEVICE)
