"""Writes RUN_DIR/server.json while the stack runs: where it answers, and its key, for the command line.

`complete` in the same directory reads the file, so it finds a server on any port. Of several stacks with one RUN_DIR,
the file is that of the last start.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_log = logging.getLogger(__name__)
SERVER_FILE_NAME = "server.json"  # in RUN_DIR


@contextmanager
def published_server(run_dir: Path, *, base_url: str, api_key: str | None, models: Sequence[str]) -> Iterator[Path]:
    """Writes the file, readable for this user only, and removes it after the block.

    `api_key` is None if a key file defines the keys. A directory that is not writable, as in a container with a
    read-only root, is only logged: the command line can be given an address and a key.
    """
    path = run_dir / SERVER_FILE_NAME
    content = {"base_url": f"{base_url}/openai/v1", "api_key": api_key, "models": list(models), "pid": os.getpid()}
    try:
        _write_private(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        _log.info("%s was not written (%s): `complete` needs --base-url and a key.", path, error.strerror)
    try:
        yield path
    finally:
        with suppress(OSError, ValueError):
            if json.loads(path.read_text(encoding="utf-8")) == content:  # not of a later start
                path.unlink()


def _write_private(path: Path, text: str) -> None:
    # mkstemp creates the file with mode 0600; the rename replaces the file of another stack in one step.
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
