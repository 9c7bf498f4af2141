"""Overload: requests over the limits are rejected with a retry time, and slow clients do not affect others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.protocol.tensors import CLIENT_ID_PARAMETER, parameters_to_arrays
from tests.support.load import stream
from tests.support.raw_requests import open_request
from tests.support.stack import MODEL, RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.triton, pytest.mark.alone]


@pytest.fixture(scope="module")
def small_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Four slots, a short queue, and short timeouts for slow clients and leases."""
    environment = {
        "EXECUTOR": "scripted",
        "SCRIPTED_MAX_ACTIVE": "4",
        "MAX_QUEUED_REQUESTS": "3",
        "MAX_TENANT_QUEUE_SHARE": "1",  # all clients have the same key
        "CLIENT_WRITE_TIMEOUT_S": "2",
        "CLIENT_LEASE_TIMEOUT_S": "3",
    }
    with running_stack(tmp_path_factory.mktemp("overload"), engine_dir, **environment) as stack:
        yield stack


def test_a_full_queue_in_decode_returns_retry_times(small_stack: RunningStack) -> None:
    """Each takes 0.5 s in one of four slots: eight a second."""
    for _ in range(3):
        stream(small_stack, prompt="Hello", max_tokens=100)
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: small_stack.complete(prompt="Hello", max_tokens=100), range(24)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(answers) - len(refused) >= 8
    assert refused
    assert {answer.status_code for answer in answers} == {200, 429}
    waits_ms = sorted(int(answer.headers["retry-after-ms"]) for answer in refused)
    print(f"{len(refused)} of 24 rejected by decode, retry after {waits_ms[0]} to {waits_ms[-1]} ms")
    assert all(answer.json()["error"]["code"] == "queue_full" for answer in refused)
    assert all(1 <= int(answer.headers["retry-after"]) <= 120 for answer in refused)
    assert waits_ms[-1] > waits_ms[0], "retry times are spread out"


def test_clients_that_retry_after_the_given_time_are_served(small_stack: RunningStack) -> None:
    """The official client reads retry-after-ms and retries by itself."""
    client = small_stack.openai().with_options(max_retries=5)
    with client, ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda _: client.completions.create(model=MODEL, prompt="Hello", max_tokens=50), range(16))
        )
    assert all(answer.choices[0].finish_reason == "length" for answer in answers)


@pytest.fixture(scope="module")
def quick_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """1,000 tokens a second, so that a client that does not read soon has a long backlog."""
    environment = {"EXECUTOR": "scripted", "SCRIPTED_STEPS_PER_S": "1000", "CLIENT_WRITE_TIMEOUT_S": "2"}
    with running_stack(tmp_path_factory.mktemp("deaf"), engine_dir, **environment) as stack:
        yield stack


def test_clients_that_do_not_read_are_disconnected_without_affecting_others(quick_stack: RunningStack) -> None:
    frontend = psutil.Process(quick_stack.frontend.pid)
    alone_s = min(stream(quick_stack, prompt="Hello", max_tokens=200).seconds for _ in range(3))
    before_mib = frontend.memory_info().rss / 2**20
    # The kernel buffers some 2.6 MB before the server can notice: request more than that.
    long = {"stream": True, "prompt": "Hello", "max_tokens": 8000, "n": 32}
    long |= {
        "return_tokens_as_token_ids": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    with ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(open_request(quick_stack, receive_buffer=4096, **long))
        peak_mib, others_s, started = before_mib, [], time.monotonic()

        def cut_off() -> bool:
            nonlocal peak_mib
            others_s.append(stream(quick_stack, prompt="Hello", max_tokens=200).seconds)
            peak_mib = max(peak_mib, frontend.memory_info().rss / 2**20)
            with quick_stack.client() as client:
                return "completions_slow_readers_total 2.0" in client.get("/metrics").text

        wait_until(cut_off, limit_s=60, what="all of them are disconnected")
        cut_s = time.monotonic() - started
    wait_until(lambda: quick_stack.active_requests == 0, limit_s=10, what="their slots are free")
    print(
        f"2 clients x 32 x 8,000 tokens that read nothing: disconnected within {cut_s:.1f} s; the front end grew by "
        f"{peak_mib - before_mib:.0f} MiB at most; 200 tokens together: {max(others_s):.2f} s, alone {alone_s:.2f} s"
    )
    assert peak_mib - before_mib < 64


def test_requests_of_a_client_whose_lease_expires_are_cancelled(small_stack: RunningStack) -> None:
    """Any client of the ensemble may send a client id; this one sends no heartbeat after it."""
    wait_until(lambda: small_stack.active_requests == 0, limit_s=10, what="the stack is idle")
    parameters = CompletionParameters(
        request_key="mine", request_id="r", prompt_text="Hello", max_tokens=4000, stream=True
    )
    ended: list[float] = []
    with triton.InferenceServerClient(small_stack.triton_grpc_url) as client:
        client.start_stream(lambda result, error: ended.append(time.monotonic()))
        client.async_stream_infer(
            "ensemble", _inputs(parameters), request_id="r", parameters={CLIENT_ID_PARAMETER: "a client that dies"}
        )
        wait_until(lambda: small_stack.active_requests == 1, limit_s=10, what="it has a slot")
        took_s = wait_until(lambda: small_stack.active_requests == 0, limit_s=10, what="its slot is free")
    assert took_s > 2.0, "no sooner than its lease"


def _inputs(parameters: CompletionParameters) -> list[triton.InferInput]:
    inputs = []
    for spec, values in parameters_to_arrays(parameters):
        tensor = triton.InferInput(spec.name, list(np.shape(values)), spec.dtype)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def test_a_request_longer_than_the_lease_is_not_cancelled(small_stack: RunningStack) -> None:
    outcome = stream(small_stack, prompt="Hello", max_tokens=1000)
    assert (outcome.finish_reason, outcome.seconds > 4.5) == ("length", True)


def test_a_disconnect_in_the_queue_frees_the_queue_slot(small_stack: RunningStack) -> None:
    connections = [open_request(small_stack) for _ in range(4)]
    # A request waits for the engine's next step: seven at the same moment would overflow the queue.
    wait_until(lambda: small_stack.active_requests == 4, limit_s=10, what="the engine works on four")
    connections += [open_request(small_stack) for _ in range(3)]
    wait_until(lambda: small_stack.decode_metric("decode_queued_requests") == 3, limit_s=10, what="three more wait")
    for connection in connections[4:]:
        connection.close()
    wait_until(lambda: small_stack.decode_metric("decode_queued_requests") == 0, limit_s=5, what="the queue is empty")
    for connection in connections[:4]:
        connection.close()
    wait_until(lambda: small_stack.active_requests == 0, limit_s=5, what="all slots are free")
    assert httpx.get(f"{small_stack.base_url}/health/ready", trust_env=False).status_code == 200
