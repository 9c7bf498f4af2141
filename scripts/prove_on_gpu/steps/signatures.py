"""The signatures of the installed TensorRT-LLM, compared with the data of the stand-ins."""

from __future__ import annotations

from typing import Any

from packaging.version import Version

from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, Table

_PROBE_LIMIT_S = 300  # the first import compiles kernels of flashinfer on some releases
# The engine runtime was removed after 1.3.0rc20 (docs/tensorrt-llm.md), with most of what this file describes.
_ENGINE_PATH_ENDS = Version("1.3.0rc21")
_ENGINE_PATH = "tensorrt_llm_api.json"


def run(context: Context) -> Outcome:
    """Fails if something is missing that this project uses: then the stand-ins allow calls that would raise."""
    found = context.run_probe("signatures", limit_s=_PROBE_LIMIT_S)
    has_engine_path = Version(found["version"]) < _ENGINE_PATH_ENDS
    rows: list[tuple[str, ...]] = []
    problems = []
    for symbol in found["symbols"]:
        is_expected = symbol["data"] == _ENGINE_PATH and not has_engine_path
        is_lacking = symbol["missing_used"] or (symbol["is_missing"] and symbol["is_used"])
        if is_lacking and not is_expected:
            problems.append(": ".join([symbol["symbol"], *symbol["missing_used"]]))
        if symbol["is_missing"] or symbol["missing"] or symbol["new"]:
            rows.append(_row(symbol, is_expected=is_expected))
    count = len(found["symbols"])
    summary = f"{count} symbols of {found['version']}: {len(rows)} differ, {len(problems)} lack something used here"
    outcome = Outcome(summary, (Table(("symbol", "used here", "missing", "new"), rows),), found)
    if problems:
        raise StepFailedError(
            f"Missing in TensorRT-LLM {found['version']}, and used here: {'; '.join(problems)}.", outcome
        )
    return outcome


def _row(symbol: dict[str, Any], *, is_expected: bool) -> tuple[str, ...]:
    missing = ", ".join(symbol["missing"]) or "-"
    if symbol["is_missing"]:
        missing = "removed with the engine runtime" if is_expected else f"all of it: {symbol['reason']}"
    used = ", ".join(symbol["missing_used"]) or ("yes" if symbol["is_used"] else "no")
    return symbol["symbol"], used, missing, ", ".join(symbol["new"]) or "-"
