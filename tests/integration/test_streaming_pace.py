"""At the engine's pace each token of a stream arrives as its own event, and the first one soon."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from openai import AsyncOpenAI

from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL, parameters_to_arrays
from tests.support.completion_rules import PaceRules
from tests.support.stack import MODEL, RunningStack

pytestmark = [pytest.mark.triton, pytest.mark.alone]

ROUNDS = 15
# What the front end may add to the first token is 10 ms at the median on a quiet machine (README, benchmarks). The
# limit here is wide, because a test machine is not quiet; a timer anywhere in the path would still break it.
ADDED_TTFT_LIMIT_S = 0.05


class TestPaceOfTheScriptedExecutor(PaceRules):
    @pytest.fixture
    def stack(self, scripted_stack: RunningStack) -> RunningStack:
        return scripted_stack


async def test_the_front_end_adds_little_to_time_to_first_token(scripted_stack: RunningStack) -> None:
    added = statistics.median(await measure_added_ttft(scripted_stack))
    print(f"added time to first token, median of {ROUNDS}: {added * 1000:.1f} ms")
    assert added < ADDED_TTFT_LIMIT_S


async def measure_added_ttft(stack: RunningStack) -> list[float]:
    """Seconds to the first token over HTTP minus those over gRPC, measured in turn."""
    added = []
    async with triton_aio.InferenceServerClient(stack.triton_grpc_url) as grpc, stack.async_openai() as client:
        await _http_ttft(client)
        for number in range(ROUNDS):
            direct = await _grpc_ttft(grpc, f"key-{number}-{time.monotonic_ns()}")
            added.append(await _http_ttft(client) - direct)
    return added


async def _http_ttft(client: AsyncOpenAI) -> float:
    started = time.perf_counter()
    stream = await client.completions.create(model=MODEL, prompt="Hello", max_tokens=3, stream=True)
    first = math.inf
    async for _ in stream:
        first = min(first, time.perf_counter() - started)
    return first


async def _grpc_ttft(client: triton_aio.InferenceServerClient, key: str) -> float:
    parameters = CompletionParameters(request_key=key, request_id=key, prompt_text="Hello", max_tokens=3, stream=True)
    inputs = []
    for spec, values in parameters_to_arrays(parameters):
        tensor = triton.InferInput(spec.name, list(values.shape), spec.dtype)
        tensor.set_data_from_numpy(np.ascontiguousarray(values))
        inputs.append(tensor)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": ENSEMBLE_MODEL, "inputs": inputs}

    started = time.perf_counter()
    first = math.inf
    async for _result, error in client.stream_infer(requests()):
        assert error is None
        first = min(first, time.perf_counter() - started)
    await asyncio.sleep(0)
    return first
