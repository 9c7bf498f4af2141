"""Runs a command that arrived by ssh with the environment of the worker, which sshd does not pass on: a ForceCommand.

Usage: `python -m launcher.gpu.remote_command ENVIRONMENT.json`, with the command in SSH_ORIGINAL_COMMAND.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

_SHELL = "/bin/sh"


def main() -> NoReturn:
    """Becomes the command. Exits with 2 if there is none: terminals are not offered."""
    command = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    if len(sys.argv) != 2 or not command:
        sys.stderr.write("Only commands can be run here.\n")
        sys.exit(2)
    environment = json.loads(Path(sys.argv[1]).read_text())
    os.execve(_SHELL, [_SHELL, "-c", command], environment)


if __name__ == "__main__":
    main()
