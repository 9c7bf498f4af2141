"""Fair shares on the real ensemble: many requests of one tenant, which a client of Triton's own gRPC names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton

from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.protocol.tensors import parameters_to_arrays
from tests.support.stack import RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.triton, pytest.mark.alone]

MANY = 200
SLOTS = 4


@pytest.fixture(scope="module")
def stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    environment = {"EXECUTOR": "scripted", "SCRIPTED_MAX_ACTIVE": str(SLOTS)}
    with running_stack(tmp_path_factory.mktemp("fair"), engine_dir, **environment) as stack:
        yield stack


class Clients:
    """Sends requests of tenants to the ensemble, and records the order in which they end."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._ended: dict[str, None] = {}
        client.start_stream(self._on_answer)

    @property
    def ended(self) -> list[str]:
        """Keys of the requests that have ended, in order."""
        with self._lock:
            return list(self._ended)

    def send(self, tenant: str, number: int) -> str:
        key = f"{tenant}-{number}"
        parameters = CompletionParameters(
            request_key=key, request_id=key, prompt_text="Hello", max_tokens=20, tenant=tenant
        )
        inputs = []
        for spec, values in parameters_to_arrays(parameters):
            tensor = triton.InferInput(spec.name, list(values.shape), spec.dtype)
            tensor.set_data_from_numpy(values)
            inputs.append(tensor)
        self._client.async_stream_infer("ensemble", inputs, request_id=key)
        return key

    def _on_answer(self, result: Any, error: Any) -> None:
        with self._lock:
            self._ended[result.get_response().id if error is None else f"error {error}"] = None


@pytest.fixture
def clients(stack: RunningStack) -> Iterator[Clients]:
    with triton.InferenceServerClient(stack.triton_grpc_url) as client:
        yield Clients(client)
        client.stop_stream()


def test_many_requests_of_one_tenant_delay_another_by_few(stack: RunningStack, clients: Clients) -> None:
    for number in range(MANY):
        clients.send("many", number)
    wait_until(lambda: stack.decode_metric("decode_queued_requests") >= MANY / 2, limit_s=10, what="many wait")
    before = len(clients.ended)
    few = clients.send("few", 0)
    wait_until(lambda: few in clients.ended, limit_s=20, what="the other tenant's request ends")
    overtaken_by = clients.ended.index(few) - before
    assert overtaken_by <= 4 * SLOTS, "it waits for a slot, and runs beside the others"
    wait_until(lambda: len(clients.ended) == MANY + 1, limit_s=60, what="all have ended")
    assert not [key for key in clients.ended if key.startswith("error")]
