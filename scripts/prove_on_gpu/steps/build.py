"""A build of --model for this GPU, with the load test that generates before the engine is published."""

from __future__ import annotations

import json
import sys
from typing import Any

from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepSkippedError, Table


def run(context: Context) -> Outcome:
    """Leaves the engine directory in the context. Skipped if one was given, or no model."""
    runtime, options = context.current_runtime, context.options
    if runtime in options.engines:
        raise StepSkippedError(f"--engine {runtime}={options.engines[runtime]} takes its place.")
    if options.model is None:
        raise StepSkippedError("Name a small model with --model: a Hugging Face directory, such as a SmolLM2-135M.")
    _, text = context.run_child(
        [
            *(sys.executable, "-m", "build_engine", "build", "--target", "auto", "--runtime", runtime),
            *("--model", str(options.model), "--precision", options.precision),
            *("--tensorrt-llm", str(context.tensorrt_llm)),  # not the default: the one that will serve it
            *("--root", str(options.output / "engines"), "--json"),
        ],
        log=f"{runtime}-build.log",
    )
    result: dict[str, Any] = json.loads(text)
    context.engine_dirs[runtime] = options.output / "engines" / result["engine_dir"]
    rows: list[tuple[str, ...]] = [
        (name, str(value)) for name, value in result.items() if isinstance(value, (str, int, float))
    ]
    return Outcome(f"built {context.engine_dirs[runtime]}", (Table(("what", "value"), rows),), result)
