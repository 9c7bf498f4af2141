"""Builds the engine that is served if ENGINE_DIR is unset."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from launcher.local.errors import StartCancelledError, StartError
from launcher.settings import REPOSITORY_ROOT

DEFAULT_ENGINE = Path("smollm2-135m-instruct") / "cpu-fp16"  # below RUN_DIR/engines
_POLL_PERIOD_S = 0.1


def build_default_engine(run_dir: Path, cancelled: threading.Event, *, python: str = sys.executable) -> Path:
    """Builds the default CPU engine and returns its directory; an existing valid engine is kept.

    `python` is the interpreter of the build process. Raises StartError if the build fails, StartCancelledError if
    `cancelled` is set first.
    """
    engine_dir = run_dir.absolute() / "engines" / DEFAULT_ENGINE  # the build runs in another directory
    command = [python, "-m", "build_engine", "build", "--target", "cpu", "--output", str(engine_dir)]
    with subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdin=subprocess.DEVNULL) as build:
        while build.poll() is None:
            if cancelled.wait(_POLL_PERIOD_S):
                build.terminate()
                raise StartCancelledError
    if build.returncode != 0:
        raise StartError("The default engine could not be built. The lines above contain the reason.")
    return engine_dir
