"""The times of traced requests, in the bursts with their ends."""

from __future__ import annotations

import time

import pytest

from llm_pipeline.protocol.channel import TokenBurst
from llm_pipeline.protocol.channel_json import token_burst_from_json, token_burst_to_json
from llm_pipeline.protocol.engine_metrics import EngineReport, TracedRequest
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, SamplingParams, TraceContext
from llm_pipeline.stages.decode.channel_sender import ChannelLimits
from tests.support.driven_channel import DrivenChannel
from tests.support.driven_stage import CLIENT, DEADLINE_S, DrivenStage
from tests.support.recorded_bursts import RecordingReply
from tests.support.waiting import wait_until

TRACE = TraceContext("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "vendor=1", 3)


def request(key: str, trace: TraceContext | None = TRACE, max_tokens: int = 5) -> GenerationRequest:
    return GenerationRequest(key, (1, 2), max_tokens, SamplingParams(), trace=trace)


def traced_of(reply: RecordingReply) -> list[TracedRequest]:
    return [found for burst in reply.bursts if burst.report is not None for found in burst.report.traced]


def ends_of(reply: RecordingReply) -> int:
    return sum(len(burst.ends) for burst in reply.bursts)


def submit(driven: DrivenStage, *requests: GenerationRequest) -> RecordingReply:
    reply = driven.open_channel()
    driven.stage.submit_bundle(CLIENT, driven.items(*requests))
    return reply


def test_a_traced_request_is_reported_with_its_end(decode: DrivenStage) -> None:
    before_s = time.time()
    reply = submit(decode, request("a"), request("b", None))
    decode.executor.generate_for({"a": [7], "b": [8]}, ends=["a", "b"])
    wait_until(lambda: ends_of(reply) == 2)
    (found,) = traced_of(reply)
    assert (found.traceparent, found.tracestate, found.choice) == (TRACE.traceparent, "vendor=1", 3)
    assert found.first_token_s is not None
    assert before_s - 0.1 <= found.arrived_s <= found.first_token_s <= found.ended_s <= time.time() + 0.1
    assert (found.finish_reason, found.error) == ("stop", None)
    (burst,) = [burst for burst in reply.bursts if burst.report is not None and burst.report.traced]
    assert burst.ends


def test_a_request_that_is_cancelled_in_the_queue_has_no_further_times(decode: DrivenStage) -> None:
    reply = submit(decode, request("a"))
    decode.stage.cancel("a")
    decode.executor.generate_for({}, ends=["a"])
    wait_until(lambda: ends_of(reply) == 1)
    (found,) = traced_of(reply)
    assert (found.begun_s, found.first_token_s) == (None, None)


def test_the_last_request_of_a_client_is_reported_with_the_numbers() -> None:
    limits = ChannelLimits(linger_s=DEADLINE_S, open_timeout_s=DEADLINE_S, report_s=0.001)
    channel = DrivenChannel(limits=limits, read_numbers=lambda: {"waiting": 1})
    sent = TracedRequest(TRACE.traceparent, "", 0, 1.0, 2.0)
    channel.outbox.add_traced(sent)
    reply = channel.open()
    channel.end()
    wait_until(lambda: ends_of(reply) == 1)
    assert traced_of(reply) == [sent]
    channel.close()


@pytest.mark.parametrize("error", [None, PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "gone")])
def test_a_report_survives_its_journey(error: PipelineError | None) -> None:
    sent = TracedRequest(
        TRACE.traceparent,
        "vendor=1",
        3,
        arrived_s=1_800_000_000.000001,
        ended_s=1_800_000_003.5,
        begun_s=None if error else 1_800_000_001.25,
        finish_reason=None if error else FinishReason.LENGTH.value,
        error=error.code.value if error else None,
    )
    report = EngineReport(traced=[sent])
    burst = token_burst_from_json(token_burst_to_json(TokenBurst("front end", 0, report=report)))
    assert burst.report is not None
    assert list(burst.report.traced) == [sent]
