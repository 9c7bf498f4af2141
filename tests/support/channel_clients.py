"""Clients of a Triton with channels, in the process of a test: the front end's own, and one that never reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from frontend.backends.channel.client import ChannelClient
from frontend.backends.channel.reader import MAX_AGE_S
from frontend.backends.channel.session import Endpoint
from frontend.backends.grpc_channel import InferRequest, InferResponse, TritonChannel, infer_request, output_names
from frontend.backends.triton import TritonGenerator
from llm_pipeline.protocol.arrays import Array, TensorSpec, array
from llm_pipeline.protocol.channel import MAX_BUNDLE_REQUESTS, BundleItem
from llm_pipeline.protocol.channel_json import bundle_to_json, text_burst_from_json
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, TextChunk, TraceContext
from llm_pipeline.protocol.tensors import (
    BUNDLE,
    BURST,
    CLIENT_ID_PARAMETER,
    DECODE_MODEL,
    ENSEMBLE_MODEL,
    OPEN_CHANNEL,
    renewal_arrays,
)
from llm_pipeline.text import logprobs


class CountingConnection(TritonChannel):
    """A connection that counts the channels opened on it."""

    opened = 0

    def infer(self, request: InferRequest, trace: TraceContext | None = None) -> AsyncIterator[InferResponse]:
        """As TritonChannel.infer."""
        self.opened += any(tensor.name == OPEN_CHANNEL.name for tensor in request.inputs)
        return super().infer(request, trace)


@dataclass
class Received:
    """The chunks of one completion, and its error if it failed."""

    parameters: CompletionParameters
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    chunks: list[TextChunk] = field(default_factory=list)
    error: PipelineError | None = None

    def on_chunk(self, chunk: TextChunk) -> None:
        """AssertionError if a chunk follows the last one, or does not continue the tokens before it."""
        assert not self.chunks or self.chunks[-1].finish_reason is None, "a chunk after the end"
        self.text += chunk.text
        self.token_ids += chunk.token_ids or ()
        if chunk.token_ids is not None:
            assert chunk.completion_tokens == len(self.token_ids), "tokens lost or doubled"
        self.chunks.append(chunk)

    @property
    def logprobs_json(self) -> bytes:
        """OpenAI's logprobs object of all chunks."""
        return logprobs.joined([chunk.logprobs_json for chunk in self.chunks if chunk.logprobs_json is not None])

    @property
    def finish_reason(self) -> str | None:
        """The finish reason, if it has ended with one."""
        return self.chunks[-1].finish_reason if self.chunks else None


@dataclass(frozen=True)
class TestClient:
    """The front end's client of one ensemble."""

    __test__ = False

    connection: CountingConnection
    channels: ChannelClient

    async def complete(self, parameters: CompletionParameters) -> Received:
        """Runs one completion to its end."""
        received = Received(parameters)
        try:
            await self.channels.generate(parameters, received.on_chunk)
        except PipelineError as error:
            received.error = error
        return received


@asynccontextmanager
async def channel_client(address: str, *, max_age_s: float = MAX_AGE_S) -> AsyncIterator[TestClient]:
    """A client whose channel is replaced at the age of `max_age_s`."""
    connection = CountingConnection(address)
    cancellations = TritonGenerator(connection, ENSEMBLE_MODEL, use_channels=False)

    async def renew(client_id: str, received: int) -> None:
        await renew_lease(connection, client_id, received)

    channels = ChannelClient(Endpoint(connection, ENSEMBLE_MODEL, cancellations.cancel, renew), max_age_s=max_age_s)
    try:
        yield TestClient(connection, channels)
    finally:
        await channels.close()
        await connection.close()


async def renew_lease(connection: TritonChannel, client_id: str, received: int) -> None:
    """One heartbeat."""
    await connection.infer_all([infer_request(DECODE_MODEL, renewal_arrays(client_id, received), "lease")])


class DeafClient:
    """Opens a channel, sends one bundle, and reads nothing until `read`. It may renew its lease all the same."""

    def __init__(self, address: str) -> None:
        self.client_id = f"deaf-{time.monotonic_ns()}"
        self._connection = TritonChannel(address)
        self._unread = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._reading: asyncio.Future[Any] | None = None
        self._received = 0  # bursts
        self._totals: dict[int, int] = {}
        self._ended: set[int] = set()

    async def begin(self, requests: Sequence[CompletionParameters], first_slot: int = 0) -> None:
        """Opens the channel and submits the requests."""
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._unread)
        self._call = stub.ModelStreamInfer(iter([self._request((OPEN_CHANNEL, array(OPEN_CHANNEL, True)))]))
        items = [BundleItem(first_slot + number, parameters) for number, parameters in enumerate(requests)]
        for start in range(0, len(items), MAX_BUNDLE_REQUESTS):
            bundle = bundle_to_json(items[start : start + MAX_BUNDLE_REQUESTS])
            async for _ in self._connection.infer(self._request((BUNDLE, array(BUNDLE, bundle)))):
                pass

    def _request(self, tensor: tuple[TensorSpec, Array]) -> InferRequest:
        return infer_request(ENSEMBLE_MODEL, [tensor], self.client_id, parameters={CLIENT_ID_PARAMETER: self.client_id})

    async def renew(self) -> None:
        """One heartbeat, with the number of bursts that it has read."""
        await renew_lease(self._connection, self.client_id, self._received)

    async def read(self, *, until_silent_s: float, renews: bool = False) -> tuple[dict[int, int], set[int]]:
        """Reads until nothing arrives for a time, or to the end, and reports with `renews` what it has read.

        Returns the number of tokens of each slot so far, and the slots that have ended. AssertionError if a burst is
        missing.
        """
        if renews:
            await self.renew()
        while True:
            try:
                message = await asyncio.wait_for(self._next(), until_silent_s)
            except (asyncio.TimeoutError, StopAsyncIteration):
                return self._totals, self._ended
            self._receive(message)
            if renews:
                await self.renew()

    async def _next(self) -> InferResponse:
        # A read is not cancelled, as that would cancel the call.
        if self._reading is None:
            self._reading = asyncio.ensure_future(anext(aiter(self._call)))
        message = await asyncio.shield(self._reading)
        self._reading = None
        return message.infer_response

    def _receive(self, response: InferResponse) -> None:
        names = output_names(response)
        if not names:
            return
        burst = text_burst_from_json(response.raw_output_contents[names.index(BURST.name)][4:])
        assert burst.serial == self._received
        self._received += 1
        self._totals.update((slot, chunk.completion_tokens) for slot, chunk in burst.chunks)
        self._ended.update(slot for slot, _ in burst.ends)

    async def close(self) -> None:
        """Closes both connections."""
        await self._unread.close()
        await self._connection.close()
