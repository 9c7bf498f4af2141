"""Metrics of requests and tokens, as Prometheus reads them."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from frontend.observability.metrics import TokenGapHistogram
from tests.support.app import Running


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
