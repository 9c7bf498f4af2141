"""Finds the server that runs from this directory, by the file RUN_DIR/server.json that `make serve` writes.

The file holds the address and its key, so that the key goes to that address only.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_FILE_NAME = "server.json"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class LocalServer:
    """A running server of this directory. `api_key` is None if a file of hashed keys defines its keys."""

    base_url: str
    api_key: str | None

    def is_at(self, base_url: str) -> bool:
        """Whether this is the server at `base_url`."""
        return self.base_url.rstrip("/") == base_url.rstrip("/")


def find_local_server(run_dir: Path) -> LocalServer | None:
    """Returns the server whose address is in `run_dir`; None if there is none.

    A file of another user, or one that others can read or write, is ignored: it could name any address. So is one that
    a killed launcher has left, whose port may belong to another program by now.
    """
    path = run_dir / _FILE_NAME
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            content = json.load(file)
        if status.st_uid != os.geteuid() or status.st_mode & _OTHERS or not _is_running(int(content["pid"])):
            return None
        key = content["api_key"]
        return LocalServer(str(content["base_url"]), None if key is None else str(key))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
