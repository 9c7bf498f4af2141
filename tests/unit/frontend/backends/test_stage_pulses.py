"""Pulses to the stages of an ensemble, with a real gRPC server whose stages answer or hang."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import orjson
import pytest
from structlog.testing import capture_logs
from tritonclient.grpc import service_pb2, service_pb2_grpc

from frontend.backends.grpc_channel import TritonChannel
from frontend.backends.stage_pulses import PulseLimits, StagePulses
from tests.support.app import until

STAGES = ["preprocess", "decode", "postprocess"]


class Stages(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated, without types
    """Answers each pulse, unless its stage hangs or fails. decode's answer contains `stalled_s`."""

    def __init__(self) -> None:
        self.may_answer = {stage: asyncio.Event() for stage in STAGES}
        for event in self.may_answer.values():
            event.set()
        self.stalled_s = 0.0
        self.error = ""
        self.pulses: Counter[str] = Counter()
        self.cancelled_calls = 0

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            stage = request.model_name.rsplit("-")[-1]
            self.pulses[stage] += 1
            try:
                await self.may_answer[stage].wait()
            except asyncio.CancelledError:
                self.cancelled_calls += 1
                raise
            if self.error:
                yield service_pb2.ModelStreamInferResponse(error_message=self.error)
                continue
            response = service_pb2.ModelInferResponse(model_name=request.model_name)
            if stage == "decode":
                answer = orjson.dumps({"stalled_s": self.stalled_s})
                response.outputs.add(name="chunk", datatype="BYTES", shape=[1, 1])
                response.raw_output_contents.append(len(answer).to_bytes(4, "little") + answer)
            yield service_pb2.ModelStreamInferResponse(infer_response=response)


@asynccontextmanager
async def stages(limits: PulseLimits, ensemble: str = "ensemble") -> AsyncIterator[tuple[Stages, StagePulses]]:
    servicer, server = Stages(), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = TritonChannel(f"127.0.0.1:{port}")
    pulses = StagePulses(channel, ensemble, limits)
    try:
        yield servicer, pulses
    finally:
        pulses.close()
        await channel.close()
        await server.stop(None)


async def test_stages_that_answer_are_asked_again_each_time() -> None:
    async with stages(PulseLimits()) as (servicer, pulses):
        for count in (1, 2, 3):
            assert await pulses.have_answers()
            assert servicer.pulses == dict.fromkeys(STAGES, count)


@pytest.mark.parametrize("stage", STAGES)
async def test_stage_that_hangs_is_silent_after_the_limit_until_it_answers(stage: str) -> None:
    async with stages(PulseLimits(answer_s=0.8)) as (servicer, pulses):
        servicer.may_answer[stage].clear()
        assert await pulses.have_answers(), "it may take a while"
        with capture_logs() as logs:
            assert not await pulses.have_answers()
            assert not await pulses.have_answers()
        assert [entry["stage"] for entry in logs if entry["event"] == "stage_does_not_answer"] == [stage]
        assert servicer.pulses[stage] == 1, "one pulse at a time"
        assert servicer.cancelled_calls == 0
        servicer.may_answer[stage].set()
        await until(pulses.have_answers)
        assert servicer.pulses[stage] == 1


@pytest.mark.parametrize("error", ["in ensemble: anything", "Failed to increase the shared memory pool size"])
async def test_error_is_an_answer(error: str) -> None:
    async with stages(PulseLimits(answer_s=0.1)) as (servicer, pulses):
        servicer.error = error
        assert await pulses.have_answers()
        assert await pulses.have_answers()
        assert pulses.is_engine_progressing


async def test_process_that_triton_calls_unhealthy_is_silent_at_once() -> None:
    async with stages(PulseLimits()) as (servicer, pulses):
        servicer.error = "Stub process 'decode_0_0' is not healthy."
        assert not await pulses.have_answers()
        servicer.error = ""
        assert await pulses.have_answers()


async def test_engine_without_steps_is_reported_until_its_next_step() -> None:
    async with stages(PulseLimits(step_s=6.0)) as (servicer, pulses):
        for stalled_s, is_progressing in ((5.9, True), (6.1, False), (300.0, False), (0.0, True)):
            servicer.stalled_s = stalled_s
            assert await pulses.have_answers()
            assert pulses.is_engine_progressing is is_progressing


async def test_stages_of_a_named_ensemble_are_its_own() -> None:
    async with stages(PulseLimits(), ensemble="large") as (servicer, pulses):
        assert await pulses.have_answers()
        assert servicer.pulses == dict.fromkeys(STAGES, 1)
