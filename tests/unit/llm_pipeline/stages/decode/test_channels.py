"""One channel for each client, for as long as the client has requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from llm_pipeline.protocol.channel import StreamStart
from llm_pipeline.protocol.messages import FinishReason, RequestEnd
from llm_pipeline.stages.decode.channel_outbox import ChannelOutbox
from llm_pipeline.stages.decode.channel_sender import ChannelLimits
from llm_pipeline.stages.decode.channels import Channels
from llm_pipeline.stages.decode.live_requests import ChannelRetiredError, LiveRequests
from llm_pipeline.stages.flow_control import SendWindow
from tests.support.driven_stage import DEADLINE_S, REFUSAL, VOCAB_SIZE, make_step
from tests.support.recorded_bursts import RecordingReply, streams_of
from tests.support.sample_requests import make_request
from tests.support.waiting import wait_until

SHORT_S = 0.02
CLOSE_S = 0.5
CLIENT = "front end"


class OpenChannels:
    """Channels over a registry of live requests, without the rest of decode."""

    def __init__(self, limits: ChannelLimits) -> None:
        self.live_requests = LiveRequests(vocab_size=VOCAB_SIZE)
        self.channels = Channels(
            self.live_requests,
            lambda outbox, address, _numbers: self.live_requests.take_burst(outbox, ack_address=address),
            limits=limits,
        )

    def open(self, client_id: str = CLIENT) -> RecordingReply:
        reply = RecordingReply()
        self.channels.open(client_id, reply)
        return reply

    def register(self, slot: int, client_id: str = CLIENT, outbox: ChannelOutbox | None = None) -> int:
        """Registers a request and returns its number."""
        request = make_request(f"{client_id} {slot}", stream=True)
        outbox = outbox or self.channels.outbox_of(client_id)
        return self.live_requests.register_on_channel(request, outbox, slot).number

    def generate(self, *numbers: int, is_end: bool = False) -> None:
        ends = [RequestEnd(number, FinishReason.STOP) for number in numbers if is_end]
        effects = self.live_requests.on_step(make_step(dict.fromkeys(numbers, (1,)), ends=ends))
        self.channels.schedule(effects.channels)


@pytest.fixture
def patient() -> Iterator[OpenChannels]:
    """Channels that stay open."""
    channels = OpenChannels(ChannelLimits(linger_s=DEADLINE_S))
    yield channels
    channels.channels.close(DEADLINE_S)


@pytest.fixture
def brief() -> Iterator[OpenChannels]:
    """Channels that end soon."""
    channels = OpenChannels(ChannelLimits(linger_s=SHORT_S, open_timeout_s=2 * SHORT_S))
    yield channels
    channels.channels.close(DEADLINE_S)


def test_each_client_gets_the_tokens_of_its_own_requests(patient: OpenChannels) -> None:
    replies = {client_id: patient.open(client_id) for client_id in "ab"}
    numbers = [patient.register(slot, client_id) for slot, client_id in enumerate("abab")]
    patient.generate(*numbers, is_end=True)
    slots = {client_id: set(streams_of(reply.wait_for_ends(2))) for client_id, reply in replies.items()}
    assert slots == {"a": {0, 2}, "b": {1, 3}}


def test_a_blocked_client_does_not_hold_up_another(patient: OpenChannels) -> None:
    stuck, free = patient.open("stuck"), patient.open("free")
    numbers = [patient.register(0, "stuck"), patient.register(0, "free")]
    stuck.hold()
    patient.generate(*numbers)
    stuck.wait_until_send_blocks()
    for count in range(1, 4):
        free.wait_for(count)
        patient.generate(*numbers)
    stuck.release()
    assert stuck.wait_for(2)[1].counts == [3]


def test_bursts_that_the_client_has_read_are_reported_to_its_channel() -> None:
    channels = OpenChannels(ChannelLimits(linger_s=DEADLINE_S, max_unread_bytes=1))
    reply = channels.open()
    number = channels.register(0)
    channels.generate(number)
    reply.wait_for(1)
    channels.generate(number)
    channels.channels.on_received("unknown", 1)
    channels.channels.on_received(CLIENT, 1)
    reply.wait_for(2)
    channels.channels.close(DEADLINE_S)


def test_an_idle_channel_is_retired_and_the_next_request_gets_a_new_one(brief: OpenChannels) -> None:
    first = brief.open()
    old = brief.channels.outbox_of(CLIENT)
    brief.generate(brief.register(0), is_end=True)
    first.wait_until_over()
    with pytest.raises(ChannelRetiredError):
        brief.register(1, outbox=old)
    with pytest.raises(ChannelRetiredError):
        brief.live_requests.refuse_on_channel(old, 1, REFUSAL)
    second = brief.open()
    brief.generate(brief.register(1), is_end=True)
    (burst,) = second.wait_for_ends()
    assert (burst.serial, burst.starts[0].slot) == (0, 1)


def test_a_channel_with_a_live_request_is_not_retired(brief: OpenChannels) -> None:
    reply = brief.open()
    number = brief.register(0)
    quiet = threading.Event()
    assert not quiet.wait(5 * SHORT_S)
    assert not reply.is_over
    brief.generate(number, is_end=True)
    assert streams_of(reply.wait_for_ends())[0].token_ids == [1]


def test_ends_that_no_client_reads_do_not_delay_the_shutdown(brief: OpenChannels) -> None:
    outbox = brief.channels.outbox_of(CLIENT)
    brief.generate(brief.register(0), is_end=True)
    brief.live_requests.refuse_on_channel(brief.channels.outbox_of(CLIENT), 1, REFUSAL)
    wait_until(lambda: outbox.is_retired)
    closing = threading.Thread(target=brief.live_requests.close, args=(DEADLINE_S,))
    closing.start()
    closing.join(DEADLINE_S / 2)
    assert not closing.is_alive()


def test_no_request_is_lost_when_channels_retire_while_requests_arrive() -> None:
    """Each request is registered as soon as the channel has become idle, which is when it retires."""
    channels = OpenChannels(ChannelLimits(linger_s=0.001, open_timeout_s=DEADLINE_S))
    for slot in range(300):
        outbox = channels.channels.outbox_of(CLIENT)
        number = None
        while number is None:
            with suppress(ChannelRetiredError):
                number = channels.register(slot, outbox=outbox)
                continue
            outbox = channels.channels.outbox_of(CLIENT)
        channels.generate(number, is_end=True)
        reply = channels.open()
        (burst,) = reply.wait_for_ends()
        assert burst.starts == [StreamStart(slot, f"{CLIENT} {slot}", burst.starts[0].text_options)]
        assert burst.token_ids == [1]
        if slot % 3:
            reply.wait_until_over()
    channels.channels.close(DEADLINE_S)


def test_after_close_a_client_that_comes_late_gets_its_refusals(brief: OpenChannels) -> None:
    reply = brief.open()
    number = brief.register(0)
    brief.generate(number, is_end=True)
    brief.channels.close(DEADLINE_S)
    assert (len(reply.wait_for_ends()), reply.is_finished) == (1, True)
    outbox = brief.channels.outbox_of(CLIENT)
    brief.live_requests.refuse_on_channel(outbox, 1, REFUSAL)
    brief.channels.schedule([outbox])
    late = brief.open()
    (burst,) = late.wait_for_ends()
    assert burst.ends[0].slot == 1
    late.wait_until_over()


def test_close_waits_for_all_channels_together() -> None:
    channels = OpenChannels(ChannelLimits(linger_s=DEADLINE_S))
    replies = [channels.open(str(client)) for client in range(5)]
    numbers = [channels.register(0, str(client)) for client in range(5)]
    for reply in replies:
        reply.hold()
    channels.generate(*numbers)
    for reply in replies:
        reply.wait_until_send_blocks()
    closing = threading.Thread(target=channels.channels.close, args=(CLOSE_S,))
    closing.start()
    closing.join(3 * CLOSE_S)
    assert not closing.is_alive()
    for reply in replies:
        reply.release()
        reply.wait_until_over()


def test_a_channel_works_without_a_window_that_can_not_be_made(caplog: pytest.LogCaptureFixture) -> None:
    live_requests = LiveRequests(vocab_size=VOCAB_SIZE)

    def fail() -> SendWindow:
        raise OSError("too many open files")

    channels = Channels(live_requests, lambda outbox, address, _: live_requests.take_burst(outbox), create_window=fail)
    reply = RecordingReply()
    channels.open(CLIENT, reply)
    outbox = channels.outbox_of(CLIENT)
    live_requests.refuse_on_channel(outbox, 0, REFUSAL)
    channels.schedule([outbox])
    reply.wait_for_ends()
    channels.close(DEADLINE_S)
    assert len(caplog.records) == 1
