"""The executor of MPI ranks above 0, on the fake."""

from __future__ import annotations

import pytest

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from tests.support.executor_rules import DEADLINE_S
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import CreateBench


def test_worker_rank_waits_in_shutdown_and_rejects_requests(create_bench: CreateBench) -> None:
    bench = create_bench(script={"is_leader": False})
    with pytest.raises(PipelineError) as caught:
        bench.executor.submit(1, make_request())
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    bench.executor.cancel(1)
    assert bench.executor.stats().active_requests == 0
    assert bench.fake.is_in_shutdown.wait(DEADLINE_S)
    assert not bench.fake.is_down
    bench.fake.released.set()
    bench.executor.close()
    assert bench.fake.is_down
    assert bench.fake.requests == []
