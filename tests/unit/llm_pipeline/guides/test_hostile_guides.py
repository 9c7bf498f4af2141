"""Each kind of hostile guide ends within the limits, and another tenant's guides are prepared beside it."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest

from llm_pipeline.guides.checks import check_guide
from llm_pipeline.guides.limits import GuideLimits
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.fields import MAX_GUIDE_CHARACTERS
from llm_pipeline.protocol.messages import GUIDE_PARAM, Guide, GuideType
from tests.support.guide_service import CreateService, ServiceBench
from tests.support.hostile_guides import HOSTILE

# Machines are shared: far above what an honest guide takes (milliseconds), far below what a hostile one does.
HONEST_S = 5.0
LIMITS = GuideLimits(compile_cpu_s=0.5)


@pytest.fixture(scope="module")
def bench(create_module_service: CreateService) -> ServiceBench:
    return create_module_service(LIMITS)


def honest(number: int) -> Guide:
    return Guide(
        GuideType.JSON_SCHEMA, json.dumps({"type": "object", "properties": {f"name{number}": {"type": "integer"}}})
    )


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_guide_ends_within_its_limits_and_others_go_on(kind: str, bench: ServiceBench) -> None:
    guide = HOSTILE[kind]
    assert len(guide.source or "") <= MAX_GUIDE_CHARACTERS
    started = time.process_time()
    with suppress(PipelineError):
        check_guide(guide)
    assert time.process_time() - started < 0.1
    hostile = bench.prepare(guide, f"hostile {kind}")
    number = 0
    while not hostile.done.is_set() or number == 0:
        number += 1
        asked_at = time.monotonic()
        prepared = bench.prepare(honest(hash((kind, number))), f"honest {number % 5}")
        assert prepared.wait().error is None
        assert time.monotonic() - asked_at < HONEST_S
        bench.service.release(prepared.ticket)
        hostile.done.wait(0.1)
    error = hostile.wait().error
    if error is None:
        assert bench.first_mask(hostile).any()
    else:
        assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)
        assert len(error.message) < 500
    bench.service.release(hostile.ticket)
