"""Load client for Triton's gRPC: `python -m benchmarks.load.grpc_load ADDRESS`.

Uses grpc.aio without (de)serialization: it keeps the bytes of each response and parses them after the clock has
stopped. Like the front end, it makes one call for each request on one connection. gRPC itself costs this client about
0.1 ms per message.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from benchmarks.load.job import LoadJob, Timeline, serve_jobs
from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL, parameters_to_arrays, text_chunk_from_raw

_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
_CONNECT_TIMEOUT_S = 10.0


def request_bytes(prompt: str, job: LoadJob) -> bytes:
    """Returns the serialized request of one greedy completion by the ensemble."""
    key = uuid.uuid4().hex
    parameters = CompletionParameters(
        request_key=key,
        request_id=key,
        prompt_text=prompt,
        max_tokens=job.max_tokens,
        temperature=0,
        stream=job.is_streamed,
    )
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE_MODEL, id=key)
    for spec, values in parameters_to_arrays(parameters):
        request.inputs.add(name=spec.name, datatype=spec.dtype, shape=values.shape)
        raw = serialize_byte_tensor(values).item() if spec.dtype == "BYTES" else values.tobytes()
        request.raw_input_contents.append(raw)
    serialized: bytes = request.SerializeToString()
    return serialized


class _Recording:
    """One call and its responses."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.sent_s = 0.0
        self.received: list[tuple[float, bytes]] = []
        self.failure: str | None = None

    async def run(self, call: Callable[..., Any]) -> None:
        """Makes the call and records its responses."""
        self.sent_s = time.perf_counter()
        received, clock = self.received, time.perf_counter
        try:
            async for response in call(_once(self.request)):
                received.append((clock(), response))
        except grpc.aio.AioRpcError as error:
            self.failure = f"{error.code()}: {error.details()}"

    def timeline(self) -> Timeline:
        """Parses the recorded responses."""
        timeline = Timeline(self.sent_s, failure=self.failure, end_s=self.sent_s)
        for arrived_s, data in self.received:
            _add_response(timeline, arrived_s, service_pb2.ModelStreamInferResponse.FromString(data))
        if timeline.failure is None and timeline.finish_reason is None:
            timeline.failure = "the response has no finish reason"
        return timeline


def _add_response(timeline: Timeline, arrived_s: float, message: Any) -> None:
    timeline.end_s = arrived_s
    if message.error_message:
        timeline.failure = message.error_message
        return
    response = message.infer_response
    if not response.outputs:
        return
    chunk = text_chunk_from_raw([output.name for output in response.outputs], response.raw_output_contents)
    if chunk.text:
        timeline.events += 1
        timeline.arrivals_s.append(arrived_s)
    timeline.completion_tokens = chunk.completion_tokens
    if chunk.prompt_tokens is not None:
        timeline.prompt_tokens = chunk.prompt_tokens
    if chunk.finish_reason is not None:
        timeline.finish_reason = chunk.finish_reason.value


async def _once(request: bytes) -> AsyncIterator[bytes]:
    yield request


class GrpcClient:
    """One channel and its event loop."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._channel = self._loop.run_until_complete(self._connect(address))
        self._call = self._channel.stream_stream(_METHOD)

    async def _connect(self, address: str) -> Any:
        channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        await asyncio.wait_for(channel.channel_ready(), _CONNECT_TIMEOUT_S)
        return channel

    def prepare(self, job: LoadJob) -> Callable[[], Callable[[], list[Timeline]]]:
        """Serializes all requests, and returns the load itself."""
        streams = [[_Recording(request_bytes(prompt, job)) for prompt in prompts] for prompts in job.prompts]

        def load() -> Callable[[], list[Timeline]]:
            gc.disable()
            try:
                self._loop.run_until_complete(self._run(streams, job.timeout_s))
            finally:
                gc.enable()
            return lambda: [recording.timeline() for stream in streams for recording in stream]

        return load

    async def _run(self, streams: list[list[_Recording]], timeout_s: float) -> None:
        tasks = [asyncio.create_task(self._run_stream(stream)) for stream in streams]
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _run_stream(self, stream: list[_Recording]) -> None:
        for recording in stream:
            await recording.run(self._call)


def main(arguments: list[str]) -> None:
    """Serves jobs for the server at the address in the first argument."""
    client = GrpcClient(arguments[0])
    serve_jobs(client.prepare)


if __name__ == "__main__":
    main(sys.argv[1:])
