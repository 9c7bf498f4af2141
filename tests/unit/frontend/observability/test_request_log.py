"""One log line per request, without prompts, generated text or API keys."""

from __future__ import annotations

import json

from structlog.testing import capture_logs

from tests.support.app import MODEL, Running, in_process


async def test_each_completion_logs_one_line(running: Running) -> None:
    with capture_logs() as lines:
        response = await running.complete(prompt="a secret prompt", max_tokens=2, stream=True)
    (line,) = [line for line in lines if line["event"] == "request"]
    assert line["request_id"] == response.headers["x-request-id"]
    assert line["log_level"] == "info"
    assert (line["key"], line["model"], line["status"], line["stream"]) == ("default", MODEL, 200, True)
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish_reasons"]) == (5, 2, ["length"])
    assert line["duration_ms"] >= line["ttft_ms"] >= 0
    assert "secret" not in json.dumps(lines)


async def test_rejected_requests_are_logged_with_their_error(running: Running) -> None:
    with capture_logs() as lines:
        await running.complete(prompt="a secret prompt", max_tokens=0)
        await running.client.get("/v1/models", headers={"authorization": "Bearer mistyped-secret"})
    assert [(line["status"], line["error"]) for line in lines] == [
        (400, "value_out_of_range"),
        (401, "invalid_api_key"),
    ]
    assert "secret" not in json.dumps(lines)


async def test_probes_are_logged_at_debug_level_for_any_status() -> None:
    async with in_process() as app:
        with capture_logs() as lines:
            for path in ("/health/live", "/health/ready", "/openai/health", "/metrics"):
                await app.client.get(path)
    assert {line["log_level"] for line in lines if line["event"] == "request"} <= {"debug"}
