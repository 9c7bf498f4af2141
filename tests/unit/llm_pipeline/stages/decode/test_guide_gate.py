"""Guided requests wait at the gate until their guide is prepared; whatever happens there, each ends exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, Guide, GuideType, TokenChunk
from llm_pipeline.stages.decode.stage import DecodeTimeouts
from tests.support.driven_guides import ADDRESS, BAD_GUIDE, DrivenGuides
from tests.support.driven_stage import REFUSAL, DrivenStage, raising
from tests.support.sample_requests import make_request
from tests.support.waiting import wait_until

GUIDE = Guide(GuideType.REGEX, "a+")


@pytest.fixture
def guides() -> DrivenGuides:
    return DrivenGuides()


@pytest.fixture
def driven(guides: DrivenGuides) -> Iterator[DrivenStage]:
    driven = DrivenStage(guides=guides, max_queued_requests=3, timeouts=DecodeTimeouts(tick_s=0.01))
    yield driven
    driven.close()


def submit(driven: DrivenStage, key: str = "a", *, max_tokens: int = 100, tenant: str = "") -> None:
    request = replace(make_request(key, max_tokens=max_tokens, stream=True), guide=GUIDE, tenant=tenant)
    driven.stage.submit(request, driven.sender)


def last(driven: DrivenStage) -> TokenChunk:
    return driven.sender.wait_for_endings()[-1]


def test_a_request_reaches_the_executor_once_its_guide_is_prepared(driven: DrivenStage, guides: DrivenGuides) -> None:
    submitted: list[GenerationRequest] = []
    driven.executor.on_submit = submitted.append
    submit(driven, tenant="t")
    assert (submitted, guides.tenants) == ([], ["t"])
    guides.finish(1)
    assert [(request.key, request.guide_address) for request in submitted] == [("a", ADDRESS)]
    driven.executor.generate("a", 1, reason=FinishReason.STOP)
    assert last(driven).finish_reason is FinishReason.STOP
    wait_until(lambda: guides.released == [1], what="the release of the guide")


def test_requests_without_a_guide_do_not_wait(driven: DrivenStage) -> None:
    submit(driven, "guided")
    driven.submit("free")
    assert driven.executor.submitted == ["free"]


def test_a_request_whose_guide_is_refused_ends_with_the_error(driven: DrivenStage, guides: DrivenGuides) -> None:
    submit(driven)
    guides.finish(1, BAD_GUIDE)
    assert last(driven).error is BAD_GUIDE
    assert driven.executor.submitted == []
    assert guides.released == [1]


def test_a_request_that_is_cancelled_at_the_gate_ends_at_once(driven: DrivenStage, guides: DrivenGuides) -> None:
    submit(driven)
    driven.stage.cancel("a")
    assert last(driven).finish_reason is FinishReason.CANCELLED
    assert guides.released == [1]
    guides.finish(1)  # it was on its way
    assert driven.executor.submitted == []


def test_a_request_whose_cancellation_came_first_ends_at_once(driven: DrivenStage, guides: DrivenGuides) -> None:
    driven.stage.cancel("a")
    submit(driven)
    assert last(driven).finish_reason is FinishReason.CANCELLED
    assert guides.released == [1]


def test_a_request_of_a_client_that_is_gone_ends_at_the_gate(guides: DrivenGuides) -> None:
    driven = DrivenStage(guides=guides, timeouts=DecodeTimeouts(lease_s=0.02, tick_s=0.01))
    driven.stage.submit(replace(make_request("a"), guide=GUIDE), driven.sender, "client")
    assert last(driven).finish_reason is FinishReason.CANCELLED
    driven.close()


def test_a_request_on_a_channel_ends_with_the_error(driven: DrivenStage, guides: DrivenGuides) -> None:
    reply = driven.open_channel()
    driven.stage.submit_bundle("front end", driven.items(replace(make_request("a"), guide=GUIDE)))
    guides.finish(1, BAD_GUIDE)
    ends = [end for burst in reply.wait_for_ends() for end in burst.ends]
    assert [str(end.error) for end in ends] == [str(BAD_GUIDE)]


def test_requests_at_the_gate_count_as_queued(driven: DrivenStage, guides: DrivenGuides) -> None:
    for number in range(4):
        submit(driven, f"r{number}")
    assert driven.stage.stats().queued_requests == 4
    submit(driven, "one more")
    error = last(driven).error
    assert error is not None
    assert error.code is ErrorCode.QUEUE_FULL
    guides.finish(1)
    assert driven.stage.stats().queued_requests == 3


def test_an_executor_that_refuses_a_prepared_request_ends_it(driven: DrivenStage, guides: DrivenGuides) -> None:
    driven.executor.on_submit = raising(REFUSAL)
    submit(driven)
    guides.finish(1)
    assert last(driven).error is REFUSAL
    wait_until(lambda: guides.released == [1], what="the release of the guide")


def test_a_request_for_no_tokens_needs_no_guide(driven: DrivenStage, guides: DrivenGuides) -> None:
    submit(driven, max_tokens=0)
    assert last(driven).finish_reason is FinishReason.LENGTH
    assert guides.waiting == {}


def test_close_ends_requests_at_the_gate(guides: DrivenGuides) -> None:
    driven = DrivenStage(guides=guides)
    submit(driven)
    driven.close()
    assert last(driven).finish_reason is FinishReason.CANCELLED
    assert guides.is_closed
    guides.finish(1)
    assert driven.executor.submitted == []
