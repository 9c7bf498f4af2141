"""The thread that sends a channel's bursts: order, limits, replies that change or fail, and its end."""

from __future__ import annotations

from contextlib import closing

from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.stages.decode.channel_sender import ChannelLimits
from llm_pipeline.stages.flow_control import AckSender, SendWindow
from tests.support.driven_channel import SHORT_S, DrivenChannel, tokens_of
from tests.support.driven_stage import DEADLINE_S
from tests.support.recorded_bursts import RecordingReply, streams_of

SLOT = 7

# --- Order and size --------------------------------------------------------------------------------------------------


def test_an_idle_channel_sends_each_step_as_a_burst(channel: DrivenChannel) -> None:
    reply = channel.open()
    for token_id in range(5):
        channel.generate(token_id)
        assert tokens_of(reply.wait_for(token_id + 1))[token_id] == [token_id]
    assert [burst.serial for burst in reply.bursts] == list(range(5))


def test_tokens_gather_while_a_burst_is_under_way(channel: DrivenChannel) -> None:
    reply = channel.open()
    reply.hold()
    channel.generate(0)
    reply.wait_until_send_blocks()
    for token_id in range(1, 5):
        channel.generate(token_id)
    channel.end()
    reply.release()
    bursts = reply.wait_for(2)
    assert tokens_of(bursts) == [[0], [1, 2, 3, 4]]
    assert [len(burst.ends) for burst in bursts] == [0, 1]


def test_tokens_gather_while_postprocess_lags() -> None:
    window = SendWindow(size=1, ack_timeout_s=DEADLINE_S)
    channel = DrivenChannel(window=window)
    reply = channel.open()
    channel.generate(0)
    assert reply.wait_for(1)[0].ack_address == window.address
    for token_id in range(1, 5):
        channel.generate(token_id)
    with closing(AckSender()) as acks:
        acks.send([window.address])
        assert tokens_of(reply.wait_for(2))[1] == [1, 2, 3, 4]
    channel.close()


class BrokenWindow(SendWindow):
    def enter(self) -> None:
        raise OSError("the socket is gone")


def test_a_broken_window_does_not_hold_bursts_back() -> None:
    channel = DrivenChannel(window=BrokenWindow())
    reply = channel.open()
    channel.generate(1)
    reply.wait_for(1)
    channel.close()


def test_bursts_wait_while_the_client_has_too_much_to_read() -> None:
    channel = DrivenChannel(limits=ChannelLimits(linger_s=SHORT_S, max_unread_bytes=1))
    reply = channel.open()
    channel.generate(0)
    reply.wait_for(1)
    channel.generate(1)
    channel.generate(2)
    channel.sender.on_received(0)
    channel.sender.join(5 * SHORT_S)  # the thread goes on to wait
    assert tokens_of(reply.bursts) == [[0]]
    channel.sender.on_received(1)
    assert tokens_of(reply.wait_for(2)) == [[0], [1, 2]]
    channel.close()


def test_a_client_may_have_as_much_unread_as_the_limit_allows() -> None:
    channel = DrivenChannel(limits=ChannelLimits(linger_s=DEADLINE_S, max_unread_bytes=10_000))
    reply = channel.open()
    sent = 0
    while sum(reply.sizes) < 10_000:
        sent += 1
        channel.generate(sent)
        reply.wait_for(sent)
    channel.generate(0)
    channel.sender.join(SHORT_S)
    assert len(reply.bursts) == sent
    channel.sender.on_received(sent - 1)
    reply.wait_for(sent + 1)
    channel.close()


# --- Replies ---------------------------------------------------------------------------------------------------------


def test_output_waits_for_a_client_that_opens_late(channel: DrivenChannel) -> None:
    channel.generate(0)
    channel.generate(1)
    assert tokens_of(channel.open().wait_for(1)) == [[0, 1]]


def test_a_new_reply_gets_what_follows_and_the_former_one_ends_first(channel: DrivenChannel) -> None:
    old = channel.open()
    old.hold()
    channel.generate(0)
    old.wait_until_send_blocks()
    channel.generate(1)
    new = channel.open()
    assert not old.is_over
    old.release()
    new.wait_for(1)
    assert old.is_finished
    channel.generate(2)
    new.wait_for(2)
    assert (tokens_of(old.bursts), tokens_of(new.bursts)) == ([[0]], [[1], [2]])
    assert streams_of([*old.bursts, *new.bursts])[SLOT].token_ids == [0, 1, 2]


def test_of_several_new_replies_the_last_one_counts_and_the_others_end(channel: DrivenChannel) -> None:
    first = channel.open()
    first.hold()
    channel.generate(0)
    first.wait_until_send_blocks()
    between, last = channel.open(), channel.open()
    channel.generate(1)
    first.release()
    last.wait_for(1)
    assert (first.is_finished, between.is_finished, between.bursts) == (True, True, [])


def test_a_burst_that_can_not_be_sent_fails_its_reply_and_a_new_reply_gets_what_follows(
    channel: DrivenChannel,
) -> None:
    broken = channel.open(RecordingReply(lambda burst: burst.serial == 1))
    channel.generate(0)
    broken.wait_for(1)
    channel.generate(1)
    broken.wait_until_over()
    assert broken.error is not None
    assert broken.error.code is ErrorCode.ENGINE_UNAVAILABLE
    channel.generate(2)
    (burst,) = channel.open().wait_for(1)
    assert (burst.serial, burst.token_ids) == (2, [2])  # the gap shows the client that burst 1 is lost


class ReplyThatCanNotEnd(RecordingReply):
    def finish(self) -> None:
        raise RuntimeError("a bug")


def test_a_reply_that_can_not_end_does_not_stop_its_successor(channel: DrivenChannel) -> None:
    channel.open(ReplyThatCanNotEnd())
    reply = channel.open()
    channel.generate(0)
    reply.wait_for(1)


def test_a_burst_that_can_not_be_made_fails_its_reply_and_the_next_one_is_sent(channel: DrivenChannel) -> None:
    failed = channel.open()

    def fail() -> None:
        channel.before_take = lambda: None
        raise RuntimeError("a bug")

    channel.before_take = fail
    channel.generate(0)
    failed.wait_until_over()
    assert failed.error is not None
    assert tokens_of(channel.open().wait_for(1)) == [[0]]


SILENCE = ChannelLimits(linger_s=SHORT_S, open_timeout_s=DEADLINE_S, silence_s=5 * SHORT_S)


def test_a_channel_whose_bursts_are_not_acknowledged_fails() -> None:
    """Triton has cancelled its request, or refuses to hand its responses to postprocess."""
    channel = DrivenChannel(limits=SILENCE, window=SendWindow(size=2, ack_timeout_s=SHORT_S))
    reply = channel.open()
    token_id = 0
    while not reply.is_over:
        channel.generate(token_id)
        token_id += 1
        channel.sender.join(SHORT_S / 4)
    assert reply.error is not None
    assert reply.error.code is ErrorCode.ENGINE_UNAVAILABLE
    channel.generate(token_id)
    assert channel.open().wait_for(1)[0].serial == len(reply.bursts)
    channel.close()


def test_a_channel_whose_last_burst_is_not_acknowledged_fails_instead_of_ending() -> None:
    """No burst follows that would show the client the gap."""
    channel = DrivenChannel(limits=SILENCE, window=SendWindow(size=2, ack_timeout_s=SHORT_S))
    reply = channel.open()
    channel.generate(0)
    channel.end()
    reply.wait_until_over()
    assert reply.error is not None
    assert channel.is_retired.wait(DEADLINE_S)


def test_a_channel_whose_bursts_are_acknowledged_ends_normally() -> None:
    window = SendWindow(size=2, ack_timeout_s=SHORT_S)
    channel = DrivenChannel(limits=SILENCE, window=window)
    reply = channel.open()
    with closing(AckSender()) as acks:
        for count in range(1, 4):
            channel.generate(count)
            reply.wait_for(count)
            acks.send([window.address])
        channel.end()
        reply.wait_for_ends()
        assert not channel.is_retired.wait(2 * SHORT_S)  # the last ack is late
        acks.send([window.address])
        reply.wait_until_over()
    assert reply.is_finished
