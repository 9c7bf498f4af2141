"""`python -m frontend.worker_main FOLDER NUMBER COUNT SOCKET`: one worker of several, started by the supervisor."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from frontend.multiprocess.shared_state import SharedState
from frontend.server import serve
from frontend.settings import FrontendSettings


def main() -> int:
    """Returns the exit status."""
    folder, number, count, listener = sys.argv[1:]
    workers = SharedState.attach(Path(folder), int(number), int(count))
    return serve(FrontendSettings(), workers, socket.socket(fileno=int(listener)))


if __name__ == "__main__":
    sys.exit(main())
