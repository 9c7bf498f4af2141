"""A front end sends the spans that are left when it stops, to a real OTLP receiver."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.front_end_process import KEY, MODEL, running_front_end
from tests.support.otlp import running_collector
from tests.support.waiting import wait_until

REQUESTS = 3


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_spans_are_sent_when_the_front_end_stops(tmp_path: Path, protocol: str) -> None:
    with running_collector(tmp_path) as collector:
        settings = {
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.grpc_url if protocol == "grpc" else collector.http_url,
            "OTEL_BSP_SCHEDULE_DELAY": "3600000",
        }
        with running_front_end(tmp_path, **settings) as address:
            url, headers = f"{address.base_url}/v1/completions", {"authorization": f"Bearer {KEY}"}
            for _ in range(REQUESTS):
                sent = httpx.post(url, json={"model": MODEL, "prompt": "Hi"}, headers=headers, trust_env=False)
                assert sent.status_code == 200
            assert collector.spans == []
        wait_until(lambda: len(collector.spans) == REQUESTS, what="all spans have arrived")
    assert {span.name for span in collector.spans} == {f"text_completion {MODEL}"}
