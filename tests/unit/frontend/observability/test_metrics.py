"""Metrics of requests and tokens, as Prometheus reads them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from frontend.backends.fake import PROMPT_TOKENS
from frontend.observability.metrics import Metrics, TokenGapHistogram
from llm_pipeline.protocol.engine_metrics import EngineReport, RequestTimes
from tests.support.app import MODEL, Running, in_process
from tests.support.keys import bearer, write_keys


async def test_metrics_count_requests_and_tokens(running: Running) -> None:
    await running.complete(max_tokens=4, stream=True)
    await running.complete(max_tokens=2, colour="red")
    assert await running.metric('completions_requests_total{model="tiny",status="200"}') == 2
    assert await running.metric("completions_prompt_tokens_total") == 10
    assert await running.metric("completions_generation_tokens_total") == 6
    assert await running.metric("completions_time_to_first_token_seconds_count") == 1
    assert await running.metric("completions_inter_token_latency_seconds_count") == 3
    assert await running.metric("completions_request_duration_seconds_count") == 2
    assert await running.metric("completions_unknown_fields_total") == 1
    assert await running.metric("completions_in_flight_requests") == 0
    assert await running.metric("completions_queued_requests") == 0
    assert await running.metric("completions_ready") == 1


async def test_metrics_are_valid_prometheus_text(running: Running) -> None:
    await running.complete(stream=True)
    text = (await running.client.get("/metrics")).text
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"completions_requests", "completions_inter_token_latency_seconds"} <= names


async def test_unknown_models_create_no_labels(running: Running) -> None:
    await running.complete(model="invented")
    text = (await running.client.get("/metrics")).text
    assert "invented" not in text
    assert 'completions_requests_total{model="none",status="404"} 1.0' in text


async def test_lengths_and_finish_reasons_are_counted_once_for_each_choice(running: Running) -> None:
    await running.complete(prompt=["Hi", "Ho"], max_tokens=3, n=2)
    assert await running.metric("completions_request_prompt_tokens_count") == 2
    assert await running.metric("completions_request_prompt_tokens_sum") == 2 * PROMPT_TOKENS
    assert await running.metric("completions_request_generation_tokens_count") == 4
    assert await running.metric("completions_request_generation_tokens_sum") == 12
    assert await running.metric("completions_request_max_tokens_count") == 1
    assert await running.metric("completions_request_max_tokens_sum") == 3
    assert await running.metric('completions_finished_total{finish_reason="length"') == 4
    assert await running.metric('completions_finished_total{finish_reason="stop"') == 0


async def test_refusals_are_counted_by_their_reason(running: Running) -> None:
    await running.complete(temperature=-1)
    await running.complete(model="invented")
    refused = 'completions_refused_requests_total{model="none",reason="%s"}'
    assert await running.metric(refused % "value_out_of_range") == 1
    assert await running.metric(refused % "model_not_found") == 1
    assert await running.metric("completions_refused_requests_total") == 2


async def test_usage_is_counted_by_the_name_of_the_key(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"name": "one"}, {"name": "other"})
    async with in_process(api_keys_file=keys, metrics_needs_key="off", api_key=None) as app:
        for name in ("one", "one", "other"):
            body = {"model": MODEL, "prompt": "Hi", "max_tokens": 2}
            assert (await app.client.post("/v1/completions", json=body, headers=bearer(name))).status_code == 200
        labels = f'{{key="one",model="{MODEL}"}}'
        assert await app.metric(f"completions_key_requests_total{labels}") == 2
        assert await app.metric(f"completions_key_prompt_tokens_total{labels}") == 2 * PROMPT_TOKENS
        assert await app.metric(f"completions_key_generation_tokens_total{labels}") == 4
        assert await app.metric("completions_key_requests_total") == 3


async def test_limits_build_and_process_are_exposed() -> None:
    async with in_process(max_in_flight=33) as app:
        assert await app.metric("completions_max_in_flight_requests") == 33
        assert await app.metric(f'completions_build_info{{version="{version("triton-completions")}"}}') == 1
        assert await app.metric('process_resident_memory_bytes{worker="0"}') > 1_000_000


def test_times_of_requests_become_histograms() -> None:
    metrics = Metrics()
    times = [RequestTimes(0.2, 1.5), RequestTimes(0.0, 0.5)]
    metrics.endpoints_of_model("m").on_report("a", EngineReport(times=times))
    for name, total in (("queue", 0.2), ("prefill", 2.0)):
        sample = f"completions_{name}_time_seconds"
        assert metrics.registry.get_sample_value(f"{sample}_count", {"model": "m"}) == 2
        assert metrics.registry.get_sample_value(f"{sample}_sum", {"model": "m"}) == pytest.approx(total)


def test_tokens_that_arrive_together_share_their_gap() -> None:
    histogram = TokenGapHistogram("x_seconds", "x", (0.1, 0.5))
    histogram.labels("m").observe(0.1, 3)
    histogram.labels("m").observe(2.0, 1)
    samples = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in histogram.collect()
        for sample in family.samples
    }
    assert samples["x_seconds_bucket", "0.1"] == 3
    assert samples["x_seconds_bucket", "0.5"] == 3
    assert samples["x_seconds_bucket", "+Inf"] == samples["x_seconds_count", None] == 4
    assert samples["x_seconds_sum", None] == pytest.approx(2.3)
