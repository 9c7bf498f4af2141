"""`python -m frontend.worker_main FOLDER NUMBER COUNT SOCKET`: one worker of several. For the supervisor alone."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from frontend.multiprocess.shared_state import SharedState
from frontend.server import run
from frontend.settings import FrontendSettings


def main() -> int:
    folder, number, count, listener = sys.argv[1:]
    workers = SharedState.attach(Path(folder), int(number), int(count))
    return run(FrontendSettings(), workers, socket.socket(fileno=int(listener)))


if __name__ == "__main__":
    sys.exit(main())
