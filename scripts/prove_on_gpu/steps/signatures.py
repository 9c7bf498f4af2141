"""The signatures of the installed TensorRT-LLM, compared with the data of the stand-ins."""

from __future__ import annotations

from typing import Any

from packaging.version import Version

from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, Table

_PROBE_LIMIT_S = 300  # the first import compiles kernels of flashinfer on some releases
# Removed with the engine path after 1.3.0rc20: docs/tensorrt-llm.md.
_ENGINE_PATH_ENDS = Version("1.3.0rc21")
_ENGINE_PATH = ("tensorrt_llm.bindings.executor.Executor", "tensorrt_llm._tensorrt_engine", "tensorrt_llm.build")


def run(context: Context) -> Outcome:
    """Fails if something that the data has is missing: then the stand-ins allow calls that would raise."""
    found = context.run_probe("signatures", limit_s=_PROBE_LIMIT_S)
    has_engine_path = Version(found["version"]) < _ENGINE_PATH_ENDS
    rows: list[tuple[str, ...]] = []
    problems = []
    for symbol in found["symbols"]:
        is_expected = symbol["is_missing"] and not has_engine_path and symbol["symbol"].startswith(_ENGINE_PATH)
        if (symbol["is_missing"] or symbol["missing"]) and not is_expected:
            problems.append(symbol["symbol"])
        if symbol["is_missing"] or symbol["missing"] or symbol["new"]:
            rows.append(_row(symbol, is_expected=is_expected))
    summary = (
        f"{len(found['symbols'])} symbols of {found['version']}: {len(rows)} differ, {len(problems)} lack something"
    )
    outcome = Outcome(summary, (Table(("symbol", "missing here", "new here"), rows),), found)
    if problems:
        raise StepFailedError(f"The stand-ins have more than the installed release: {', '.join(problems)}.", outcome)
    return outcome


def _row(symbol: dict[str, Any], *, is_expected: bool) -> tuple[str, ...]:
    missing = ", ".join(symbol["missing"]) or "-"
    if symbol["is_missing"]:
        missing = "removed, as expected" if is_expected else f"all of it: {symbol['reason']}"
    return symbol["symbol"], missing, ", ".join(symbol["new"]) or "-"
