"""The Triton generator without channels, with a real gRPC server that returns scripted responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs
from tritonclient.grpc import service_pb2, service_pb2_grpc

from frontend.backends.generator import NoRoomError, UnreachableError
from frontend.backends.grpc_channel import TritonChannel, infer_request
from frontend.backends.triton import TritonGenerator
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from llm_pipeline.protocol.tensors import text_chunk_to_arrays
from tests.support.app import completed, until

PARAMETERS = CompletionParameters(
    "key-1", "request-1", prompt_text="Hi", max_tokens=3, seed=-1, stop=("x", "y"), stream=True
)


class ScriptedTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated, without types
    """Responds with `script`: chunks, error messages inside responses, or a status (code, details).

    It waits for events in the script.
    """

    def __init__(self) -> None:
        self.script: list[TextChunk | str | tuple[grpc.StatusCode, str] | asyncio.Event | None] = []
        self.requests: list[Any] = []
        self.streams = 0
        self.metadata: dict[str, str] = {}
        self.address = ""
        self.is_ready = True
        self.finished = 0

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=self.is_ready)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.streams += 1
        self.metadata = dict(context.invocation_metadata())
        async for request in requests:
            self.requests.append(request)
            if request.model_name == "decode":
                continue
            for step in self.script:
                if isinstance(step, tuple):
                    await context.abort(*step)
                    return
                if isinstance(step, asyncio.Event):
                    await step.wait()
                    continue
                if isinstance(step, str):
                    yield service_pb2.ModelStreamInferResponse(error_message=step)
                    continue
                yield service_pb2.ModelStreamInferResponse(infer_response=_response(step))
        self.finished += 1


def _response(chunk: TextChunk | None) -> Any:
    """A response, without outputs for None, as Triton sends it at the end of a call."""
    response = service_pb2.ModelInferResponse(model_name="ensemble")
    for spec, values in [] if chunk is None else text_chunk_to_arrays(chunk):
        response.outputs.add(name=spec.name, datatype=spec.dtype, shape=values.shape)
        if spec.dtype == "BYTES":
            response.raw_output_contents.append(b"".join(len(v).to_bytes(4, "little") + v for v in values.flat))
        else:
            response.raw_output_contents.append(values.tobytes())
    return response


@asynccontextmanager
async def scripted_triton() -> AsyncIterator[tuple[ScriptedTriton, TritonGenerator]]:
    servicer, server = ScriptedTriton(), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    servicer.address = f"127.0.0.1:{port}"
    generator = TritonGenerator(TritonChannel(servicer.address), "ensemble", use_channels=False)
    try:
        yield servicer, generator
    finally:
        await generator.close()
        await server.stop(None)


async def test_chunks_arrive_unchanged() -> None:
    sent = [
        TextChunk(" é", 1, prompt_tokens=4),
        TextChunk("", 2, token_ids=(5, 6)),
        TextChunk("x" * 100_000, 9, None, 4, FinishReason.LENGTH),
    ]
    async with scripted_triton() as (triton, generator):
        triton.script = list(sent)
        assert await completed(generator, PARAMETERS) == sent


async def test_secret_is_sent_with_completions_and_control_messages() -> None:
    async with scripted_triton() as (triton, _):
        channel = TritonChannel(triton.address, secret="0123456789abcdef")
        generator = TritonGenerator(channel, "ensemble", use_channels=False)
        triton.script = [TextChunk("a", 1, None, 4, FinishReason.STOP)]
        await completed(generator, PARAMETERS)
        assert triton.metadata.pop("triton-grpc-protocol-triton-secret") == "0123456789abcdef"
        await generator.cancel("key")
        assert triton.metadata.pop("triton-grpc-protocol-triton-secret") == "0123456789abcdef"
        await generator.close()


async def test_silent_chunks_are_skipped() -> None:
    expected = [TextChunk("a", 1, prompt_tokens=4), TextChunk("b", 3, None, 4, FinishReason.STOP)]
    async with scripted_triton() as (triton, generator):
        triton.script = [expected[0], TextChunk("", 2), expected[1], TextChunk("", 3), None]
        assert await completed(generator, PARAMETERS) == expected


async def test_request_tensors() -> None:
    async with scripted_triton() as (triton, generator):
        assert await completed(generator, PARAMETERS) == []
        (request,) = triton.requests
        assert (request.model_name, request.id) == ("ensemble", "request-1")
        inputs = dict(zip((tensor.name for tensor in request.inputs), request.raw_input_contents, strict=True))
        assert inputs["text_input"] == b"\x02\x00\x00\x00Hi"
        assert inputs["seed"] == b"\xff" * 8
        assert inputs["request_key"] == b"\x05\x00\x00\x00key-1"
        assert inputs["stop_words"] == b"\x01\x00\x00\x00x\x01\x00\x00\x00y"
        assert "temperature" not in inputs
        assert "triton_grpc_error" not in triton.metadata  # it crashes this Triton version when requests fail


WIRE_ERROR = "in ensemble 'ensemble', [error code=context_length_exceeded param=prompt] 9 of 8 tokens"


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (WIRE_ERROR, ErrorCode.CONTEXT_LENGTH_EXCEEDED),
        ("[error code=queue_full] full", ErrorCode.QUEUE_FULL),
        ("[error code=invented] x", ErrorCode.INTERNAL_ERROR),
        ("Traceback /secret/path", ErrorCode.INTERNAL_ERROR),
        ("Stub process 'decode_0_0' is not healthy.", ErrorCode.ENGINE_UNAVAILABLE),
        (
            "in ensemble 'ensemble', Failed to increase the shared memory pool size for key 'x' to 4193856 bytes.",
            ErrorCode.SERVICE_UNAVAILABLE,
        ),
        ("Request for unknown model: 'ensemble' is not found", ErrorCode.SERVICE_UNAVAILABLE),
        ((grpc.StatusCode.INVALID_ARGUMENT, WIRE_ERROR), ErrorCode.CONTEXT_LENGTH_EXCEEDED),
        ((grpc.StatusCode.UNAVAILABLE, "server exiting"), ErrorCode.SERVICE_UNAVAILABLE),
        ((grpc.StatusCode.INTERNAL, "Traceback /secret/path"), ErrorCode.INTERNAL_ERROR),
    ],
)
async def test_failures_become_pipeline_errors(failure: str | tuple[grpc.StatusCode, str], expected: ErrorCode) -> None:
    async with scripted_triton() as (triton, generator):
        triton.script = [TextChunk("a", 1), failure]
        with pytest.raises(PipelineError) as caught:
            await completed(generator, PARAMETERS)
    assert caught.value.code is expected
    assert "secret" not in caught.value.message


async def test_full_shared_memory_is_a_no_room_error() -> None:
    async with scripted_triton() as (triton, generator):
        triton.script = ["in ensemble 'ensemble', Failed to increase the shared memory pool size for key 'x'."]
        with pytest.raises(NoRoomError):
            await completed(generator, PARAMETERS)


async def test_failed_call_is_read_to_its_end_and_not_cancelled() -> None:
    async with scripted_triton() as (triton, generator):
        triton.script = [WIRE_ERROR, TextChunk("late", 1)]
        with pytest.raises(PipelineError):
            await completed(generator, PARAMETERS)
        await until(lambda: triton.finished == 1)


@pytest.mark.parametrize("details", ["Request for unknown model: 'ensemble' is not found", "Server is stopping, x"])
async def test_request_that_has_not_started_is_unreachable(details: str) -> None:
    async with scripted_triton() as (triton, generator):
        triton.script = [details]
        with pytest.raises(UnreachableError):
            await completed(generator, PARAMETERS)


@pytest.mark.parametrize(
    "details",
    [
        "in ensemble 'ensemble', Server is stopping, scheduler for model has stopped accepting new inference requests",
        "in ensemble 'ensemble', Request for unknown model: 'postprocess' is not found",
        "Request for unknown model: 'decode' is not found",
    ],
)
async def test_request_rejected_by_a_step_of_the_ensemble_may_have_started(details: str) -> None:
    async with scripted_triton() as (triton, generator):
        triton.script = [details]
        with pytest.raises(PipelineError) as caught:
            await completed(generator, PARAMETERS)
    assert caught.value.code is ErrorCode.SERVICE_UNAVAILABLE
    assert not isinstance(caught.value, UnreachableError)


async def test_first_line_of_tritons_error_is_logged() -> None:
    with capture_logs() as logs:
        async with scripted_triton() as (triton, generator):
            triton.script = ["x" * 1000 + "\nTraceback of many lines"]
            with pytest.raises(PipelineError):
                await completed(generator, PARAMETERS)
    (line,) = [line for line in logs if line["event"] == "triton_call_failed"]
    assert (line["details"], line["model"]) == ("x" * 300, "ensemble")


async def test_error_details_of_third_party_models_are_not_logged() -> None:
    """They may quote the prompt."""
    with capture_logs() as logs:
        async with scripted_triton() as (triton, _):
            triton.script = ["a secret prompt"]
            channel = TritonChannel(triton.address, logs_details=False)
            with pytest.raises(PipelineError):
                await anext(channel.infer(infer_request("ensemble", [], "request-1")))
            await channel.close()
    assert "secret" not in str(logs)
    assert [line["details"] for line in logs if line["event"] == "triton_call_failed"] == ["15 characters"]


@pytest.mark.parametrize("sent", [[], [TextChunk("a", 1)]], ids=["no token", "a token"])
async def test_request_whose_connection_breaks_may_have_started(sent: list[TextChunk]) -> None:
    servicer, server = ScriptedTriton(), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    generator = TritonGenerator(TritonChannel(f"127.0.0.1:{port}"), "ensemble", use_channels=False)
    servicer.script = [*sent, asyncio.Event()]
    chunks: list[TextChunk] = []
    request = asyncio.ensure_future(generator.generate(PARAMETERS, chunks.append))
    await until(lambda: bool(servicer.requests) and chunks == sent)
    await server.stop(None)
    with pytest.raises(PipelineError) as caught:
        await request
    assert caught.value.code is ErrorCode.SERVICE_UNAVAILABLE
    assert not isinstance(caught.value, UnreachableError)
    with pytest.raises(UnreachableError):
        await completed(generator, PARAMETERS)
    await generator.close()


async def test_no_connection_is_unreachable() -> None:
    generator = TritonGenerator(TritonChannel("127.0.0.1:1"), "ensemble", use_channels=False)
    assert not await generator.is_ready()
    with pytest.raises(UnreachableError) as caught:  # recognized by the text of gRPC's error
        await completed(generator, PARAMETERS)
    assert caught.value.code is ErrorCode.SERVICE_UNAVAILABLE
    with pytest.raises(PipelineError):
        await generator.cancel("key")
    await generator.close()


async def test_readiness() -> None:
    async with scripted_triton() as (triton, generator):
        assert await generator.is_ready()
        triton.is_ready = False
        assert not await generator.is_ready()


async def test_cancellations_of_the_same_moment_share_a_stream() -> None:
    async with scripted_triton() as (triton, generator):
        await asyncio.gather(*(generator.cancel(f"key-{number}") for number in range(3)))
        assert triton.streams == 1
        assert [request.model_name for request in triton.requests] == ["decode"] * 3
        sent = [dict(zip((t.name for t in r.inputs), r.raw_input_contents, strict=True)) for r in triton.requests]
        assert [inputs["stop"][4:] for inputs in sent] == [b"key-0", b"key-1", b"key-2"]
        await generator.cancel("key-4")
        assert triton.streams == 2


async def test_unused_generator_can_be_closed() -> None:
    await TritonGenerator(TritonChannel("127.0.0.1:1"), "ensemble").close()
