"""Metrics in which every family has a series."""

from __future__ import annotations

from frontend.api_key import ApiKey
from frontend.observability.metrics import Metrics
from frontend.observability.request_record import RequestRecord
from llm_pipeline.protocol.engine_metrics import FAMILIES, EngineReport, RequestTimes
from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import FinishReason

MODEL, ENDPOINT = "model", "triton:8001"
ALL_NUMBERS = {number: 0.5 for family in FAMILIES for number in family.series}
INFO = {"executor": "tensorrt_llm", "engine_id": "0123456789ab", "tensorrt_llm": "1.2.1", "sm": "90"}


def every_metric() -> Metrics:
    """Metrics after a request, a refusal and a report of an engine that has every number."""
    metrics = Metrics()
    model = metrics.of_model(MODEL)
    model.count_cancelled("deadline")
    model.count_finished(FinishReason.STOP)
    model.token_gaps.observe(0.01, 2)
    metrics.watch(MODEL, in_flight=lambda: 1, queued=lambda: 1, is_ready=lambda: True)
    metrics.set_limits(512, {MODEL: 64})
    endpoints = metrics.endpoints_of_model(MODEL)
    endpoints.on_known(ENDPOINT)
    endpoints.on_selected("prefix")
    endpoints.on_report(ENDPOINT, EngineReport(ALL_NUMBERS, [RequestTimes(0.1, 0.2)], INFO))
    metrics.count_request(make_record(status=200))
    metrics.count_request(make_record(status=429, error_code=ErrorCode.QUEUE_FULL))
    return metrics


def make_record(
    *, status: int, error_code: ErrorCode | None = None, key: str = "key", prompt: int = 5, completion: int = 7
) -> RequestRecord:
    """The record of a completion request that has ended."""
    record = RequestRecord("id", "POST", "/v1/completions", "http://localhost", wants_problem_json=False)
    record.key = ApiKey(name=key, sha256="0" * 64)
    record.served_model, record.status, record.error_code = MODEL, status, error_code
    record.prompt_tokens, record.completion_tokens = prompt, completion
    return record
