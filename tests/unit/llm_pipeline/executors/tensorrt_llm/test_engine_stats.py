"""Iteration stats of the engine, on the fake."""

from __future__ import annotations

import logging

import pytest

from llm_pipeline.protocol.engine_metrics import FAMILIES
from llm_pipeline.protocol.messages import FinishReason
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import LONG, CreateBench, TrtllmBench


def test_iteration_stats_become_gauges(bench: TrtllmBench) -> None:
    number = bench.submit(make_request(max_tokens=LONG))
    bench.recorder.wait_for(lambda: bench.executor.stats().gauges.get("kv_cache_used_blocks", 0) > 0)
    gauges = bench.executor.stats().gauges
    assert gauges["kv_cache_max_blocks"] == 1024
    assert gauges["active_requests"] == gauges["generation_requests"] == 1
    assert gauges["max_active_requests"] == 3
    assert gauges["kv_cache_used_share"] == pytest.approx(gauges["kv_cache_used_blocks"] / 1024)
    assert gauges.keys() <= {number for family in FAMILIES for number in family.series}
    bench.executor.cancel(number)


def test_unreadable_stats_fail_no_request(create_bench: CreateBench, caplog: pytest.LogCaptureFixture) -> None:
    bench = create_bench(script={"stats": "unreadable"})
    assert bench.end_of(make_request(max_tokens=500)).finish_reason is FinishReason.LENGTH
    assert caplog.text.count("statistics can't be read") == 1
    assert logging.ERROR in {record.levelno for record in caplog.records}
