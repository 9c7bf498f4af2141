"""A gRPC server that plays Triton and decode for clients with channels. Tests write the bursts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from llm_pipeline.protocol.channel import BundleItem, TextBurst
from llm_pipeline.protocol.channel_json import bundle_from_json, text_burst_to_json
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk

Failure: TypeAlias = str | tuple[grpc.StatusCode, str]  # an error message inside a response, or a status


class ClientSide:
    """What decode has of one client: its requests, its channel, and the bursts that wait for a channel."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.slots: dict[str, int] = {}  # by request key
        self.serial = 0
        self.opened = 0  # channels
        self._waiting: list[bytes] = []
        self._kept = False
        self._channel: asyncio.Queue[bytes | Failure | None] | None = None

    @property
    def has_channel(self) -> bool:
        return self._channel is not None

    def open_channel(self) -> asyncio.Queue[bytes | Failure | None]:
        if not self._kept:
            self.end_channel()
        self.opened += 1
        self._kept = False
        self._channel = asyncio.Queue()
        for burst in self._waiting:
            self._channel.put_nowait(burst)
        self._waiting = []
        return self._channel

    def keep_channel(self) -> asyncio.Queue[bytes | Failure | None]:
        """Takes the channel over: it no longer ends when its successor is opened."""
        assert self._channel is not None
        channel, self._kept = self._channel, True
        return channel

    def burst(
        self,
        *chunks: tuple[str, str | TextChunk],
        ends: Sequence[str] = (),
        errors: Sequence[tuple[str, PipelineError]] = (),
    ) -> None:
        """Sends chunks and ends, by request key; a text stands for a chunk of one token."""
        over = [*((self.slots[key], None) for key in ends), *((self.slots[key], error) for key, error in errors)]
        self.send(TextBurst(self.serial, self._texts(chunks), over))

    def json_of(self, serial: int, *chunks: tuple[str, str | TextChunk]) -> bytes:
        """A burst that the test sends itself."""
        return text_burst_to_json(TextBurst(serial, self._texts(chunks)))

    def _texts(self, chunks: Sequence[tuple[str, str | TextChunk]]) -> list[tuple[int, TextChunk]]:
        return [(self.slots[key], TextChunk(text, 1) if isinstance(text, str) else text) for key, text in chunks]

    def send(self, burst: TextBurst) -> None:
        self.send_json(text_burst_to_json(burst))

    def send_json(self, json: bytes) -> None:
        self.serial += 1
        if self._channel is None:
            self._waiting.append(json)
        else:
            self._channel.put_nowait(json)

    def end_channel(self) -> None:
        if self._channel is not None:
            self._channel.put_nowait(None)
            self._channel = None

    def fail_channel(self, failure: Failure) -> None:
        assert self._channel is not None
        self._channel.put_nowait(failure)
        self._channel = None


class ChannelTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated, without types
    """Registers bundles and opens channels unless they are refused; calls `on_bundle` for each bundle."""

    def __init__(self) -> None:
        self.address = ""
        self.clients: dict[str, ClientSide] = {}
        self.bundles: list[list[BundleItem]] = []
        self.bundle_bytes: list[int] = []
        self.request_ids: list[str] = []
        self.bundle_headers: list[dict[str, str]] = []  # W3C Trace Context headers of each bundle's call
        self.cancelled: list[str] = []
        self.renewals: list[tuple[str, int | None]] = []
        self.answered_bundles = 0
        self.finished = 0  # calls that were read to their end
        self.cancelled_calls = 0
        self.refused_channels = 0
        self.bundle_failure: Failure | None = None
        self.channel_failure: Failure | None = None
        self.renewal_failure: Failure | None = None
        self._is_draining = False
        self.bundles_may_end = asyncio.Event()
        self.bundles_may_end.set()
        self.on_bundle: Callable[[ClientSide, list[BundleItem]], None] = lambda client, items: None

    @property
    def client(self) -> ClientSide:
        """The latest client."""
        return list(self.clients.values())[-1]

    def end_channels(self) -> None:
        """Ends all channels, also those that are opened from now on, as decode does without live requests."""
        self._is_draining = True
        for client in self.clients.values():
            client.end_channel()

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        try:
            async for request in requests:
                async for response in self._handle(request, dict(context.invocation_metadata())):
                    if isinstance(response, tuple):
                        await context.abort(*response)
                    else:
                        yield _message(response)
        except asyncio.CancelledError:
            self.cancelled_calls += 1
            raise
        self.finished += 1

    async def _handle(self, request: Any, metadata: dict[str, str]) -> AsyncIterator[bytes | Failure | None]:
        raw = zip((tensor.name for tensor in request.inputs), request.raw_input_contents, strict=True)
        inputs = dict(raw)
        if stop := inputs.get("stop"):
            self.cancelled.append(stop[4:].decode())
        elif renew := inputs.get("renew"):
            received = inputs.get("received")
            count = None if received is None else int.from_bytes(received, "little")
            self.renewals.append((renew[4:].decode(), count))
            if self.renewal_failure is not None:
                yield self.renewal_failure
        else:
            client_id = request.parameters["owner"].string_param
            client = self.clients.setdefault(client_id, ClientSide(client_id))
            headers = {name: value for name, value in metadata.items() if name.startswith("trace")}
            if "open_channel" in inputs:
                assert not headers, "a channel carries many requests, so it belongs to no trace"
            else:
                self.bundle_headers.append(headers)
            async for response in self._open(client) if "open_channel" in inputs else self._register(client, request):
                yield response

    async def _register(self, client: ClientSide, request: Any) -> AsyncIterator[Failure | None]:
        json = request.raw_input_contents[0][4:]
        items = bundle_from_json(json)
        self.bundles.append(items)
        self.bundle_bytes.append(len(json))
        self.request_ids.append(request.id)
        if (failure := self.bundle_failure) is None:
            client.slots |= {item.parameters.request_key: item.slot for item in items}
            self.on_bundle(client, items)
        await self.bundles_may_end.wait()
        self.answered_bundles += 1
        yield failure

    async def _open(self, client: ClientSide) -> AsyncIterator[bytes | Failure | None]:
        if self.channel_failure is not None:
            self.refused_channels += 1
            yield self.channel_failure
            return
        if self._is_draining:
            yield None
            return
        channel = client.open_channel()
        while True:
            item = await channel.get()
            yield item
            if not isinstance(item, bytes):
                return


def _message(content: bytes | str | None) -> Any:
    """A burst, an error, or the last response of a call, which has no outputs."""
    if isinstance(content, str):
        return service_pb2.ModelStreamInferResponse(error_message=content)
    response = service_pb2.ModelInferResponse(model_name="ensemble")
    if content is not None:
        response.outputs.add(name="burst", datatype="BYTES", shape=[1, 1])
        response.raw_output_contents.append(len(content).to_bytes(4, "little") + content)
    return service_pb2.ModelStreamInferResponse(infer_response=response)


@asynccontextmanager
async def channel_triton() -> AsyncIterator[ChannelTriton]:
    """A running server, with its address."""
    servicer, server = ChannelTriton(), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    servicer.address = f"127.0.0.1:{port}"
    try:
        yield servicer
    finally:
        servicer.bundles_may_end.set()
        servicer.end_channels()
        await server.stop(None)


def parameters(key: str, prompt: str = "Hi") -> CompletionParameters:
    """A short request."""
    return CompletionParameters(key, f"id-{key}", prompt_text=prompt, max_tokens=3, stream=True)


def last_chunk(text: str = "") -> TextChunk:
    """The chunk with a finish reason."""
    return TextChunk(text, 2, prompt_tokens=1, finish_reason=FinishReason.LENGTH)


class Completion:
    """A running `generate`: its chunks, and its task."""

    def __init__(self, generator: Any, request: CompletionParameters) -> None:
        self.key = request.request_key
        self.chunks: list[TextChunk] = []
        self.task = asyncio.create_task(generator.generate(request, self.chunks.append))

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def texts(self) -> list[str]:
        return [chunk.text for chunk in self.chunks]

    async def over(self, timeout_s: float = 5.0) -> str:
        """Waits for its end and returns the text. Raises its PipelineError."""
        await asyncio.wait_for(asyncio.shield(self.task), timeout_s)
        return self.text

    async def failed(self, timeout_s: float = 5.0) -> PipelineError:
        """Waits for its failure."""
        await asyncio.wait({self.task}, timeout=timeout_s)
        error = self.task.exception()
        assert isinstance(error, PipelineError), error
        return error
