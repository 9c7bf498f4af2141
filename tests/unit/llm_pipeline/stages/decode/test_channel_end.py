"""The end of a channel: when it is idle, when its client has gone, and at shutdown."""

from __future__ import annotations

import time

from llm_pipeline.stages.decode.channel_sender import ChannelLimits
from tests.support.driven_channel import BRIEF, SHORT_S, DrivenChannel, tokens_of
from tests.support.driven_stage import DEADLINE_S
from tests.support.recorded_bursts import RecordingReply, streams_of
from tests.support.waiting import wait_until

SLOT = 7


def test_an_idle_channel_ends_but_not_while_it_has_a_request() -> None:
    channel = DrivenChannel(limits=BRIEF)
    reply = channel.open()
    assert not channel.is_retired.wait(5 * SHORT_S)
    channel.generate(0)
    channel.end()
    reply.wait_until_over()
    assert (reply.is_finished, channel.is_retired.is_set()) == (True, True)
    assert streams_of(reply.bursts)[SLOT].end is not None


def test_a_channel_lingers_after_its_last_burst() -> None:
    channel = DrivenChannel(limits=ChannelLimits(linger_s=5 * SHORT_S))
    reply = channel.open()
    channel.end()
    reply.wait_for_ends()
    took_s = wait_until(lambda: reply.is_over)
    assert 2 * SHORT_S < took_s < DEADLINE_S


def test_a_reply_that_comes_while_the_channel_is_about_to_end_stays_open() -> None:
    channel = DrivenChannel(limits=BRIEF)
    late: list[RecordingReply] = []

    def open_once() -> None:
        if not late:
            late.append(channel.open())
            channel.is_live = True

    channel.before_retire = open_once
    channel.is_live = False
    wait_until(lambda: late)
    channel.generate(1)
    assert tokens_of(late[0].wait_for(1)) == [[1]]
    assert not late[0].is_over
    channel.close()


def test_output_of_a_client_that_opens_no_channel_is_dropped_after_a_time() -> None:
    channel = DrivenChannel(limits=BRIEF)
    channel.generate(0)
    channel.end()
    assert not channel.is_retired.wait(2 * BRIEF.linger_s)
    assert channel.is_retired.wait(DEADLINE_S)


def test_a_channel_whose_client_has_stopped_reading_fails_after_its_last_request() -> None:
    """As a front end that hung and was then killed: nothing is on its way, so no ack is missing."""
    limits = ChannelLimits(linger_s=SHORT_S, open_timeout_s=5 * SHORT_S, max_unread_bytes=1)
    channel = DrivenChannel(limits=limits)
    reply = channel.open()
    channel.generate(0)
    reply.wait_for(1)
    channel.generate(1)
    assert not channel.is_retired.wait(2 * limits.open_timeout_s), "it has a request"
    channel.end()
    assert channel.is_retired.wait(DEADLINE_S)
    reply.wait_until_over()
    assert reply.error is not None
    assert tokens_of(reply.bursts) == [[0]]


def test_output_waits_for_a_new_channel_after_a_reply_has_failed() -> None:
    channel = DrivenChannel(limits=ChannelLimits(linger_s=SHORT_S, open_timeout_s=DEADLINE_S))
    broken = channel.open(RecordingReply(lambda burst: True))
    channel.generate(0)
    broken.wait_until_over()
    channel.generate(1)
    channel.end()
    assert not channel.is_retired.wait(5 * SHORT_S)
    assert tokens_of(channel.open().wait_for_ends()) == [[1]]
    channel.close()


def test_close_sends_what_is_left_and_ends_the_reply() -> None:
    channel = DrivenChannel(limits=ChannelLimits(linger_s=DEADLINE_S, max_unread_bytes=1))
    reply = channel.open()
    channel.generate(0)
    reply.wait_for(1)
    channel.generate(1)  # waits until the client has read the first
    channel.end()
    channel.close()
    assert tokens_of(reply.bursts) == [[0], [1]]
    assert (len(reply.bursts[-1].ends), reply.is_finished) == (1, True)


def test_close_does_not_wait_for_a_client_without_a_channel(channel: DrivenChannel) -> None:
    channel.generate(0)
    started_s = time.monotonic()
    channel.close()
    assert time.monotonic() - started_s < DEADLINE_S / 2
