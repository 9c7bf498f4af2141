"""Starts Triton with the engine through launcher.gpu, and the front end, and makes the first completion."""

from __future__ import annotations

import time

from scripts.prove_on_gpu.completions import Completions
from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepSkippedError, Table
from scripts.prove_on_gpu.server import Server


def run(context: Context) -> Outcome:
    """Leaves the server in the context for the steps after it."""
    runtime = context.current_runtime
    folder = context.engine_dirs.get(runtime)
    if folder is None:
        raise StepSkippedError(
            f"There is no engine directory: `{runtime}/build` failed, or use --engine {runtime}=DIR."
        )
    server = Server(context, runtime, folder)
    try:
        ready_s = server.wait_until_ready()
        with Completions(server) as completions:
            started = time.monotonic()
            text = completions.choice(prompt="Once upon a time", max_tokens=24)["text"]
            first_s = time.monotonic() - started
            capabilities = completions.capabilities()
    except BaseException:
        server.stop()
        raise
    context.server = server
    rows: list[tuple[str, ...]] = [
        ("ready after", f"{ready_s:.1f} s"),
        ("first completion", f"{first_s * 1000:.0f} ms: {text!r}"),
        ("engine", server.manifest.model_name),
        ("capabilities", ", ".join(f"{name} {value}" for name, value in capabilities.items())),
    ]
    data = {"ready_s": ready_s, "first_completion_s": first_s, "text": text, "capabilities": capabilities}
    return Outcome(f"ready after {ready_s:.1f} s", (Table(("what", "value"), rows),), data)
