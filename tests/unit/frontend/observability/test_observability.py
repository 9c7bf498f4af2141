"""Metrics, the line per request, the documents, and what none of them may show."""

from __future__ import annotations

import json
import re

import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from frontend.api.schema_documents import DOCUMENTS
from frontend.observability.metrics import TokenGapHistogram
from tests.support.app import KEY, MODEL, Running, in_process


async def test_metrics_of_a_stream(running: Running) -> None:
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


async def test_metrics_parse(running: Running) -> None:
    await running.complete(stream=True)
    text = (await running.client.get("/metrics")).text
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"completions_requests", "completions_inter_token_latency_seconds"} <= names


async def test_clients_cannot_invent_labels(running: Running) -> None:
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


async def test_one_line_per_request(running: Running) -> None:
    with capture_logs() as lines:
        answer = await running.complete(prompt="a secret prompt", max_tokens=2, stream=True)
    (line,) = [line for line in lines if line["event"] == "request"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["log_level"] == "info"
    assert (line["key"], line["model"], line["status"], line["stream"]) == ("default", MODEL, 200, True)
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish_reasons"]) == (5, 2, ["length"])
    assert line["duration_ms"] >= line["ttft_ms"] >= 0
    assert "secret" not in json.dumps(lines)


async def test_refused_requests_leave_their_line(running: Running) -> None:
    with capture_logs() as lines:
        await running.complete(prompt="a secret prompt", max_tokens=0)
        await running.client.get("/v1/models", headers={"authorization": "Bearer mistyped-secret"})
    assert [(line["status"], line["error"]) for line in lines] == [
        (400, "value_out_of_range"),
        (401, "invalid_api_key"),
    ]
    assert "secret" not in json.dumps(lines)


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_schema_documents(running: Running, name: str) -> None:
    answer = await running.client.get(f"/openai/schemas/{name}.json")
    schema = answer.json()
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == str(answer.url)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("POST", "/v1/completions", {"model": MODEL, "prompt": "Hi"}),
        ("POST", "/v1/completions", {"model": MODEL, "prompt": ["a", "b"], "return_tokens_as_token_ids": True}),
        ("POST", "/v1/completions", {"model": "other", "prompt": "Hi"}),
        ("POST", "/v1/completions", {}),
        ("GET", "/openai/v1/models", None),
        ("GET", f"/v1/models/{MODEL}", None),
        ("GET", "/health/nothing", None),
    ],
)
async def test_bodies_validate_against_the_schema_they_name(
    running: Running, method: str, path: str, fields: object
) -> None:
    body = (await running.client.request(method, path, json=fields)).json()
    schema = (await running.client.get(body["$schema"])).json()
    Draft202012Validator(schema).validate(body)


async def test_models_and_aliases() -> None:
    async with in_process(model_aliases="a,org/b") as app:
        found = (await app.client.get("/v1/models")).json()["data"]
        assert [(model["id"], model["root"]) for model in found] == [(MODEL, MODEL), ("a", MODEL), ("org/b", MODEL)]
        assert (await app.client.get("/openai/v1/models/org/b")).json()["id"] == "org/b"


async def test_docs_need_nothing_from_elsewhere(running: Running) -> None:
    page = (await running.client.get("/docs", headers={"authorization": ""})).text
    assert "/openai/v1/completions" in page
    assert re.findall(r"(?:src|@import|<link)[^>]*", page) == []
    assert re.findall(r'href="([^"]*)"', page) == ["/openai/openapi.json"]


async def test_open_documents_show_no_secret(running: Running) -> None:
    for path in ("/metrics", "/openai/openapi.json", "/docs", "/health", "/openai/schemas/Error.json"):
        assert KEY not in (await running.client.get(path)).text


async def test_probes_are_logged_for_debugging_only_whatever_they_answer() -> None:
    async with in_process() as app:
        with capture_logs() as lines:
            for path in ("/health/live", "/health/ready", "/openai/health", "/metrics"):
                await app.client.get(path)
    assert {line["log_level"] for line in lines if line["event"] == "request"} <= {"debug"}
