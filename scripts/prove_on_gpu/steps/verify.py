"""`build_engine verify` of the engine directory, with the accuracy gate if --model is its checkpoint."""

from __future__ import annotations

import json
import sys
from typing import Any

from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, StepSkippedError, Table

_INCOMPLETE = 4  # exit status: none failed, and not everything could be checked


def run(context: Context) -> Outcome:
    """Fails if a check failed; those that could not be made are named."""
    runtime, model = context.current_runtime, context.options.model
    folder = context.engine_dirs.get(runtime)
    if folder is None:
        raise StepSkippedError(f"There is no engine directory: `{runtime}/build` was left out or failed.")
    # A model directory has the model's own weights: there is nothing to compare their accuracy with.
    checkpoint = [] if model is None or runtime == "pytorch" else ["--model", str(model)]
    status, text = context.run_child(
        [sys.executable, "-m", "build_engine", "verify", str(folder), *checkpoint, "--json"],
        log=f"{runtime}-verify.log",
        accepted=(0, 1, _INCOMPLETE),
    )
    document: Any = json.loads(text)
    checks = document["checks"] if isinstance(document, dict) else document
    rows: list[tuple[str, ...]] = [
        (str(check["name"]), str(check["outcome"]), str(check["detail"])) for check in checks
    ]
    open_checks = [name for name, result, _ in rows if result == "not checked"]
    summary = f"{len(rows) - len(open_checks)} checks passed"
    if open_checks:
        summary += f"; not made: {', '.join(open_checks)}"
    outcome = Outcome(summary, (Table(("check", "result", "detail"), rows),), {"checks": checks})
    if status == 1:
        raise StepFailedError("A check failed.", outcome)
    return outcome
