"""GET /metrics/engine: who may read it, and what it answers."""

from __future__ import annotations

from typing import Any

import pytest

from llm_pipeline.protocol.engine_metrics import EngineReport
from tests.support.app import MODEL, Running, in_process

PATH = "/metrics/engine"
NO_KEY = {"authorization": ""}


async def test_the_newest_report_is_on_the_page(running: Running) -> None:
    observer = running.dependencies.metrics.endpoints_of_model(MODEL)
    for waiting in (3, 7):
        observer.on_report("triton:8001", EngineReport({"waiting": waiting}))
        response = await running.client.get(PATH)
        assert response.text.endswith(f'nv_trt_llm_request_metrics{{request_type="waiting"}} {waiting}\n')
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("values", "needs_key"),
    [
        ({"host": "127.0.0.1"}, False),
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "metrics_needs_key": "off"}, False),
        ({"metrics_needs_key": "on"}, True),
    ],
)
async def test_pickers_need_no_key_unless_the_operator_demands_one(values: dict[str, Any], needs_key: bool) -> None:
    async with in_process(**values) as app:
        assert (await app.client.get(PATH, headers=NO_KEY)).status_code == (401 if needs_key else 200)
        assert (await app.client.get(PATH)).status_code == 200


async def test_pickers_use_the_address_of_a_pod() -> None:
    async with in_process(host="0.0.0.0", allowed_hosts="llm.example.com") as app:
        headers = {"host": "10.1.2.3:9000"}
        assert (await app.client.get("/v1/models", headers=headers)).status_code == 421
        assert (await app.client.get(PATH, headers=headers)).status_code == 200


async def test_only_reading_is_allowed(running: Running) -> None:
    assert (await running.client.post(PATH)).status_code == 405
    head = await running.client.head(PATH)
    assert (head.status_code, head.content) == (200, b"")


async def test_numbers_of_the_engine_are_among_all_metrics(running: Running) -> None:
    report = EngineReport({"running": 5, "cancelled": 2}, info={"engine_id": "0123456789ab", "sm": "90"})
    running.dependencies.metrics.endpoints_of_model(MODEL).on_report("triton:8001", report)
    labels = f'endpoint="triton:8001",model="{MODEL}"'
    lines = (await running.client.get("/metrics")).text.splitlines()
    assert f'nv_trt_llm_request_metrics{{{labels},request_type="scheduled"}} 5.0' in lines
    assert f"decode_cancelled_requests_total{{{labels}}} 2.0" in lines
    info = f'decode_engine_info{{endpoint="triton:8001",engine_id="0123456789ab",model="{MODEL}",sm="90"}} 1.0'
    assert info in lines
    assert not any(line.startswith("nv_trt_llm_kv_cache_block_metrics{") for line in lines)
