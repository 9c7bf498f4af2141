"""Housekeeping ends what nothing else ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from llm_pipeline.protocol.messages import EngineStep, FinishReason, RequestEnd
from llm_pipeline.stages.decode.housekeeper import Housekeeper
from llm_pipeline.stages.decode.leases import Leases
from llm_pipeline.stages.decode.live_requests import LiveRequests
from llm_pipeline.stages.decode.outbox import Outbox
from llm_pipeline.stages.decode.stage import DecodeTimeouts
from tests.support.driven_stage import DEADLINE_S, VOCAB_SIZE, DrivenStage, RecordingSender
from tests.support.sample_requests import make_request

TICK_S = 0.01


def make_housekeeper(live_requests: LiveRequests) -> tuple[Housekeeper, list[int], list[RequestEnd]]:
    cancelled: list[int] = []
    ends: list[RequestEnd] = []

    def on_step(step: EngineStep) -> None:
        assert (len(step.numbers), len(step.token_ids)) == (0, 0)
        ends.extend(step.ends)

    return Housekeeper(live_requests, cancel=cancelled.append, on_step=on_step), cancelled, ends


def register(live_requests: LiveRequests, client_id: str | None = None) -> int:
    """Registers the request "a" and returns its number."""
    request = make_request("a")
    return live_requests.register(request, Outbox(request, RecordingSender()), client_id).number


def test_requests_of_a_client_that_is_gone_are_cancelled_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    live_requests = LiveRequests(vocab_size=VOCAB_SIZE, leases=Leases(lease_s=1.0, tick_s=1.0), tick_s=1.0)
    number = register(live_requests, client_id="dead")
    housekeeper, cancelled, ends = make_housekeeper(live_requests)
    for _ in range(3):
        housekeeper.tick()
    assert (cancelled, ends) == ([number, number], [])  # at every tick: an executor may have missed the first
    assert len(caplog.records) == 1


def test_cancelled_requests_that_the_executor_does_not_end_are_ended() -> None:
    live_requests = LiveRequests(vocab_size=VOCAB_SIZE, cancel_timeout_s=1.0, tick_s=1.0)
    number = register(live_requests)
    live_requests.cancel("a")
    housekeeper, _, ends = make_housekeeper(live_requests)
    housekeeper.tick()
    assert ends == []
    housekeeper.tick()
    assert ends == [RequestEnd(number, FinishReason.CANCELLED)]


@pytest.fixture
def impatient() -> Iterator[DrivenStage]:
    """A stage with short timeouts, whose executor does not react to a cancellation."""
    decode = DrivenStage(timeouts=DecodeTimeouts(lease_s=DEADLINE_S, cancel_s=5 * TICK_S, tick_s=TICK_S))
    yield decode
    decode.close()


def test_the_stage_ends_a_cancelled_request_exactly_once(impatient: DrivenStage) -> None:
    impatient.submit()
    impatient.stage.cancel("a")
    assert impatient.sender.wait_for_endings()[0].finish_reason is FinishReason.CANCELLED
    impatient.executor.generate("a", 1)
    assert len(impatient.sender.chunks) == 1


def test_housekeeping_goes_on_after_a_tick_that_fails(impatient: DrivenStage) -> None:
    failed = threading.Event()

    def fail_once() -> None:
        if threading.current_thread().name == "decode-housekeeper" and not failed.is_set():
            failed.set()
            raise RuntimeError("a bug")

    impatient.on_change = fail_once
    for count, key in enumerate("ab", start=1):
        impatient.submit(key)
        impatient.stage.cancel(key)
        impatient.sender.wait_for_endings(count)
    assert failed.is_set()
