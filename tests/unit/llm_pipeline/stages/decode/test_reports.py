"""The engine's numbers and the times of requests, in the bursts of a channel."""

from __future__ import annotations

import time

import pytest

from llm_pipeline.protocol.channel import TokenBurst
from llm_pipeline.protocol.engine_metrics import EngineReport, RequestTimes
from llm_pipeline.protocol.messages import FinishReason
from llm_pipeline.stages.decode.channel_sender import ChannelLimits
from llm_pipeline.stages.decode.queue_limits import QueueLimits
from tests.support.driven_channel import SHORT_S, DrivenChannel, tokens_of
from tests.support.driven_stage import DEADLINE_S, DrivenStage, make_step
from tests.support.waiting import wait_until

OFTEN = ChannelLimits(linger_s=DEADLINE_S, open_timeout_s=DEADLINE_S, report_s=0.001)
SELDOM = ChannelLimits(linger_s=DEADLINE_S, open_timeout_s=DEADLINE_S, report_s=DEADLINE_S)


def reports_of(bursts: list[TokenBurst]) -> list[EngineReport]:
    return [burst.report for burst in bursts if burst.report is not None]


class Numbers:
    """The numbers of an engine, as a test sets them."""

    def __init__(self) -> None:
        self.waiting = 0

    def __call__(self) -> dict[str, float]:
        return {"waiting": self.waiting}


def test_the_first_burst_has_the_numbers_and_those_soon_after_do_not() -> None:
    channel = DrivenChannel(limits=SELDOM, read_numbers=Numbers())
    reply = channel.open()
    for token_id in range(3):
        channel.generate(token_id)
    wait_until(lambda: sum(map(len, tokens_of(reply.bursts))) == 3)
    assert [report.numbers for report in reports_of(reply.bursts)] == [{"waiting": 0}]
    channel.close()


def test_numbers_that_change_are_reported_without_tokens() -> None:
    numbers = Numbers()
    channel = DrivenChannel(limits=OFTEN, read_numbers=numbers)
    channel.outbox.live_count = 1
    reply = channel.open()
    for count in (1, 2, 3):
        numbers.waiting = count
        wait_until(lambda: {"waiting": count} in [report.numbers for report in reports_of(reply.bursts)])  # noqa: B023
    assert [burst.serial for burst in reply.bursts] == list(range(len(reply.bursts)))
    assert not any(burst.slots or burst.starts for burst in reply.bursts)
    channel.generate(5)
    wait_until(lambda: any(burst.starts for burst in reply.bursts))
    channel.close()


def test_numbers_that_stay_the_same_are_not_repeated_without_tokens() -> None:
    channel = DrivenChannel(limits=OFTEN, read_numbers=Numbers())
    channel.outbox.live_count = 1
    reply = channel.open()
    wait_until(lambda: len(reply.bursts) == 1)
    channel.sender.join(50 * OFTEN.report_s)  # the thread goes on to wait
    assert len(reply.bursts) == 1
    channel.close()


def test_a_channel_without_requests_gets_no_reports() -> None:
    """A Triton that is stopping would lose them, and would not exit while the channel is open (measured)."""
    limits = ChannelLimits(linger_s=5 * SHORT_S, open_timeout_s=5 * SHORT_S, report_s=0.001)
    channel = DrivenChannel(limits=limits, read_numbers=lambda: {"waiting": time.monotonic()})
    reply = channel.open()
    channel.is_live = False
    assert channel.is_retired.wait(DEADLINE_S)
    assert reply.bursts == []


def test_the_end_of_the_last_request_has_the_numbers_however_new_the_last_report_is() -> None:
    numbers = Numbers()
    channel = DrivenChannel(limits=SELDOM, read_numbers=numbers)
    reply = channel.open()
    channel.generate(1)
    wait_until(lambda: tokens_of(reply.bursts) == [[1]])
    numbers.waiting = 5
    channel.end()
    last = reply.wait_for_ends(1)[-1]
    assert last.report is not None
    assert last.report.numbers == {"waiting": 5}
    channel.close()


def test_numbers_that_cannot_be_read_hold_no_tokens_back() -> None:
    def fail() -> dict[str, float]:
        raise RuntimeError("the engine's statistics are broken")

    channel = DrivenChannel(limits=OFTEN, read_numbers=fail)
    reply = channel.open()
    channel.generate(1)
    reply.wait_for(1)
    channel.close()


def test_times_of_a_request_come_with_its_first_token() -> None:
    decode = DrivenStage()
    reply = decode.open_channel()
    decode.submit_bundle("a")
    number = decode.executor.number_of("a")
    begun_s = time.monotonic() - 100  # before it arrived: never a negative time
    decode.executor.emit(make_step({}, begun={number: begun_s}))
    decode.executor.emit(make_step({}, begun={number: begun_s + 1000}))  # after a preemption
    decode.executor.generate("a", 1)
    decode.executor.generate("a", 2, reason=FinishReason.LENGTH)
    reply.wait_for_ends(1)
    (times,) = [times for report in reports_of(reply.bursts) for times in report.times]
    assert times.queue_s == 0
    assert times.prefill_s == pytest.approx(100, abs=DEADLINE_S)
    decode.close()


def test_a_request_whose_executor_reports_no_beginning_has_no_times() -> None:
    decode = DrivenStage()
    reply = decode.open_channel()
    decode.submit_bundle("a")
    decode.executor.generate("a", 1, reason=FinishReason.LENGTH)
    assert reports_of(reply.wait_for_ends(1)) == []
    decode.close()


def test_numbers_have_the_limits_of_the_queue_and_the_time_of_loading() -> None:
    decode = DrivenStage(queue_limits=QueueLimits(requests=7, tokens=900))
    decode.submit("a")
    numbers = decode.stage.stats().numbers
    assert (numbers["running"], numbers["waiting"], numbers["cancelled"]) == (1, 0, 0)
    assert (numbers["max_queued_requests"], numbers["max_queued_tokens"]) == (7, 900)
    assert numbers["load_s"] >= 0
    decode.close()


def test_a_queue_without_a_limit_of_tokens_has_no_such_number() -> None:
    decode = DrivenStage(queue_limits=QueueLimits(requests=7))
    assert "max_queued_tokens" not in decode.stage.stats().numbers
    decode.close()


def test_reports_equal_what_was_sent() -> None:
    report = EngineReport({"waiting": 1.5}, [RequestTimes(0.1, 0.2)], {"sm": "90"})
    assert EngineReport.from_columns(report.to_columns()) == report
    assert EngineReport.from_columns(EngineReport().to_columns()) == EngineReport({}, [], {})
