"""Time from a client's disconnect until decode's slot is free, that is until the engine has reported the end."""

from __future__ import annotations

import statistics
import time
from itertools import islice

from scripts.prove_on_gpu.completions import Completions
from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, Table
from scripts.prove_on_gpu.server import Server

_EVENTS_BEFORE = 2
_SLOWEST_S = 15.0  # TRTLLM_CANCEL_TIMEOUT_S: then decode gives the request up
_POLL_S = 0.002


def run(context: Context) -> Outcome:
    """Fails if a slot stays occupied until decode gives up."""
    server = context.server
    assert server is not None
    times: list[float] = []
    with Completions(server) as completions:
        for _ in range(context.options.cancels):
            with completions.stream(
                prompt="Once upon a time", max_tokens=server.longest_completion, ignore_eos=True
            ) as events:
                if len(list(islice(events, _EVENTS_BEFORE))) < _EVENTS_BEFORE:
                    raise StepFailedError("A stream ended before it was cancelled. Use a model with more context.")
            times.append(_until_free(server, context))
    times.sort()
    p50, p99 = statistics.median(times), times[max(0, round(0.99 * len(times)) - 1)]
    rows: list[tuple[str, ...]] = [
        (name, f"{1000 * value:.1f} ms") for name, value in (("p50", p50), ("p99", p99), ("slowest", times[-1]))
    ]
    outcome = Outcome(
        f"{len(times)} disconnects: slot free after {1000 * p50:.0f} ms (p50), {1000 * p99:.0f} ms (p99)",
        (Table(("percentile", "disconnect to free slot"), rows),),
        {"times_s": times, "p50_s": p50, "p99_s": p99},
    )
    if times[-1] > _SLOWEST_S:
        raise StepFailedError("A cancelled request did not end in the engine within its time limit.", outcome)
    return outcome


def _until_free(server: Server, context: Context) -> float:
    started = time.monotonic()
    while server.active_requests() > 0:
        time.sleep(min(_POLL_S, context.left_s()))
    return time.monotonic() - started
