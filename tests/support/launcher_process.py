"""`python -m launcher` as a process, as `make serve` runs it, and its output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

READY_LINE = "Ctrl-C stops everything."


def start_launcher(
    engine_dir: Path, run_dir: Path, ports: list[int], prefix: Sequence[str] = (), **settings: str
) -> subprocess.Popen[str]:
    """Starts it on `ports`: HTTP of the front end, then HTTP, gRPC and metrics of Triton."""
    names = ("PORT", "TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in ("API_KEY", "API_KEYS_FILE")}
    environment |= {name: str(port) for name, port in zip(names, ports, strict=True)}
    environment |= {"ENGINE_DIR": str(engine_dir), "RUN_DIR": str(run_dir), "EXECUTOR": "scripted", **settings}
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "launcher"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], marker: str) -> str:
    """Output up to the line that contains `marker`. AssertionError if the process ends first."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if marker in line:
            return "".join(lines)
    raise AssertionError(f"the launcher ended without printing {marker!r}:\n{''.join(lines)}")
