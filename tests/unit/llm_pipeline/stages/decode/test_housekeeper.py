"""Housekeeping ends what nothing else ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from llm_pipeline.protocol.messages import FinishReason, StepOutput
from llm_pipeline.stages.decode.housekeeper import Housekeeper
from llm_pipeline.stages.decode.leases import Leases
from llm_pipeline.stages.decode.live_requests import LiveRequests
from llm_pipeline.stages.decode.outbox import Outbox
from llm_pipeline.stages.decode.stage import DecodeTimeouts
from tests.support.driven_stage import DEADLINE_S, VOCAB_SIZE, DrivenStage, RecordingSender
from tests.support.sample_requests import make_request

TICK_S = 0.01


def make_housekeeper(live_requests: LiveRequests) -> tuple[Housekeeper, list[str], list[StepOutput]]:
    cancelled: list[str] = []
    endings: list[StepOutput] = []
    return Housekeeper(live_requests, cancel=cancelled.append, on_steps=endings.extend), cancelled, endings


def test_requests_of_a_client_that_is_gone_are_cancelled_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    live_requests = LiveRequests(vocab_size=VOCAB_SIZE, leases=Leases(lease_s=1.0, tick_s=1.0), tick_s=1.0)
    live_requests.register(Outbox(make_request("a"), RecordingSender(), client_id="dead"))
    housekeeper, cancelled, endings = make_housekeeper(live_requests)
    for _ in range(3):
        housekeeper.tick()
    assert (cancelled, endings) == (["a", "a"], [])  # at every tick: an executor may have missed the first
    assert len(caplog.records) == 1


def test_cancelled_requests_that_the_executor_does_not_end_are_ended() -> None:
    live_requests = LiveRequests(vocab_size=VOCAB_SIZE, cancel_timeout_s=1.0, tick_s=1.0)
    live_requests.register(Outbox(make_request("a"), RecordingSender()))
    live_requests.cancel("a")
    housekeeper, _, endings = make_housekeeper(live_requests)
    housekeeper.tick()
    assert endings == []
    housekeeper.tick()
    assert endings == [StepOutput("a", finish_reason=FinishReason.CANCELLED)]


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
