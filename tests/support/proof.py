"""Runs scripts/prove-on-gpu as a process, with stand-ins in place of TensorRT-LLM and the driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.installed import FAKES

SCRIPT = Path(__file__).parents[2] / "scripts" / "prove-on-gpu"

_LIMIT_S = 170


@dataclass(frozen=True)
class Proof:
    """A finished run: its exit status, its output, and its report."""

    status: int
    output: str
    page: str
    document: dict[str, Any]

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The steps by name."""
        return {result["name"]: result for result in self.document["results"]}

    @property
    def statuses(self) -> dict[str, str]:
        """Each step's status by its name."""
        return {name: result["status"] for name, result in self.results.items()}


def proof_command(output: Path, *arguments: str) -> list[str]:
    """Returns the command line of the script."""
    return [str(SCRIPT), "--output", str(output), *arguments]


def proof_environment(**environment: str) -> dict[str, str]:
    """Returns an environment with a stand-in for NVML, and for TensorRT-LLM if PROVE_STAND_INS is among the values."""
    return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(FAKES / "nvml"), **environment}


def run_proof(output: Path, *arguments: str, **environment: str) -> Proof:
    """Runs the script to its end."""
    done = subprocess.run(
        proof_command(output, *arguments),
        env=proof_environment(**environment),
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    report = output / "report.json"
    document = json.loads(report.read_bytes()) if report.exists() else {"results": []}
    page = (output / "report.md").read_text(encoding="utf-8") if report.exists() else ""
    return Proof(done.returncode, done.stdout + done.stderr, page, document)
