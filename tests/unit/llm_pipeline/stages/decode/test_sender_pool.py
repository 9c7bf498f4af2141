"""The sender threads: order, turns, and senders that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import FinishReason, PromptLogprobs, RequestEnd, RequestLogprobs, TokenChunk
from llm_pipeline.stages.decode.outbox import ChunkSender, Outbox
from llm_pipeline.stages.decode.sender_pool import SenderPool
from llm_pipeline.stages.flow_control import AckSender, SendWindow
from tests.support.driven_stage import DEADLINE_S, BrokenSender, RecordingSender
from tests.support.sample_requests import make_request


class DrivenPool:
    """A SenderPool whose outboxes the test fills, from one thread."""

    def __init__(
        self,
        *,
        senders: int = 1,
        window: SendWindow | None = None,
        take_chunk: Callable[[Outbox], TokenChunk] = Outbox.take_chunk,
    ) -> None:
        self.sender = RecordingSender()
        self.cancelled: list[str] = []
        self._keys: list[str] = []  # by number
        self.pool = SenderPool(
            take_chunk, lambda number: self.cancelled.append(self._keys[number]), senders=senders, window=window
        )
        self.pool.start()

    def open(self, key: str, sender: ChunkSender | None = None) -> Outbox:
        outbox = Outbox(make_request(key, max_tokens=100, stream=True), sender or self.sender)
        outbox.number = len(self._keys)
        self._keys.append(key)
        return outbox

    def generate(self, outbox: Outbox, *token_ids: int, reason: FinishReason | None = None) -> None:
        outbox.add(token_ids)
        if reason is not None:
            outbox.end = RequestEnd(outbox.number, reason)
        self.pool.schedule([outbox])

    def block_sender(self) -> None:
        """Occupies the sender thread with a chunk of another request."""
        self.sender.hold()
        self.generate(self.open("blocker"), 1)
        self.sender.wait_until_send_blocks()

    def close(self) -> None:
        self.sender.release()
        self.pool.close(DEADLINE_S)


@pytest.fixture
def pool() -> Iterator[DrivenPool]:
    pool = DrivenPool()
    yield pool
    pool.close()


def test_first_chunks_go_ahead_of_the_queue(pool: DrivenPool) -> None:
    old = [pool.open(key) for key in "ab"]
    for outbox in old:
        pool.generate(outbox, 1)
    pool.sender.wait_for(2)
    pool.block_sender()
    for outbox in old:
        pool.generate(outbox, 2)
    pool.generate(pool.open("new"), 1)
    pool.sender.release()
    assert [chunk.key for chunk in pool.sender.wait_for(6)[2:]] == ["blocker", "new", "a", "b"]


def test_requests_take_turns(pool: DrivenPool) -> None:
    """A request that makes many tokens does not keep the others from the sender."""
    a, b = pool.open("a"), pool.open("b")
    for outbox in (a, b):
        pool.generate(outbox, 1)
    pool.sender.wait_for(2)
    pool.block_sender()
    for token_id in range(3):
        pool.generate(a, token_id)
    pool.generate(b, 1)
    pool.sender.release()
    assert [(chunk.key, len(chunk.token_ids)) for chunk in pool.sender.wait_for(5)[3:]] == [("a", 3), ("b", 1)]


def test_with_several_senders_a_blocked_send_does_not_block_other_requests() -> None:
    pool = DrivenPool(senders=2)
    stuck, free = RecordingSender(), RecordingSender()
    stuck.hold()
    pool.generate(pool.open("stuck", stuck), 1)
    stuck.wait_until_send_blocks()
    outbox = pool.open("free", free)
    for token_id in range(3):
        pool.generate(outbox, token_id)
        free.wait_for(token_id + 1)
    stuck.release()
    pool.close()


def test_chunks_of_one_request_are_sent_one_after_the_other_by_several_senders() -> None:
    pool = DrivenPool(senders=3)
    outbox = pool.open("a")
    pool.sender.hold()
    for token_id in range(3):
        pool.generate(outbox, token_id)
        pool.sender.wait_until_send_blocks()
    pool.generate(pool.open("other"), 1)
    pool.sender.release()
    chunks = [chunk for chunk in pool.sender.wait_for(3) if chunk.key == "a"]
    assert [chunk.token_ids for chunk in chunks] == [(0,), (1, 2)]
    pool.close()


def test_an_outbox_without_unsent_output_is_not_sent(pool: DrivenPool) -> None:
    """Its chunk may have been taken between the step and `schedule`; nothing may follow a final chunk."""
    outbox = pool.open("a")
    pool.generate(outbox, 1, reason=FinishReason.STOP)
    pool.sender.wait_for_endings()
    pool.pool.schedule([outbox])
    pool.generate(pool.open("b"), 1)
    assert [chunk.key for chunk in pool.sender.wait_for(2)] == ["a", "b"]


def test_tokens_gather_while_postprocess_lags() -> None:
    window = SendWindow(size=1, ack_timeout_s=DEADLINE_S)
    pool = DrivenPool(window=window)
    outbox = pool.open("a")
    pool.generate(outbox, 0)
    pool.sender.wait_for(1)
    for token_id in range(1, 5):
        pool.generate(outbox, token_id)
    with closing(AckSender()) as acks:
        acks.send([window.address])
        assert pool.sender.wait_for(2)[1].token_ids == (1, 2, 3, 4)
        acks.send([window.address])
    pool.close()


class BrokenWindow(SendWindow):
    def enter(self) -> None:
        raise OSError("the socket is gone")


def test_a_broken_window_does_not_hold_chunks_back() -> None:
    pool = DrivenPool(window=BrokenWindow())
    pool.generate(pool.open("a"), 1)
    pool.sender.wait_for(1)
    pool.close()


def test_close_sends_what_is_queued(pool: DrivenPool) -> None:
    pool.block_sender()
    for key in "abc":
        pool.generate(pool.open(key), 1, reason=FinishReason.STOP)
    pool.close()
    assert [chunk.key for chunk in pool.sender.chunks] == ["blocker", "a", "b", "c"]


def test_a_chunk_that_can_not_be_sent_cancels_only_its_own_request(pool: DrivenPool) -> None:
    broken = BrokenSender()
    pool.generate(pool.open("broken", broken), 1)
    assert broken.failed.wait(DEADLINE_S)
    pool.generate(pool.open("a"), 1, reason=FinishReason.STOP)
    pool.sender.wait_for_endings()
    assert pool.cancelled == ["broken"]


def test_a_final_chunk_that_can_not_be_sent_is_replaced_by_a_bare_error(pool: DrivenPool) -> None:
    """Otherwise Triton would wait for the end of this request forever."""
    picky = BrokenSender(lambda chunk: len(chunk.token_ids) > 0)
    pool.generate(pool.open("picky", picky), 1, 2, reason=FinishReason.STOP)
    pool.close()
    (chunk,) = picky.sent
    assert chunk.error is not None
    assert (chunk.error.code, chunk.text_options is not None) == (ErrorCode.INTERNAL_ERROR, True)


def test_the_bare_error_carries_no_logprobs(pool: DrivenPool) -> None:
    """They may be the reason that the chunk could not be sent."""
    picky = BrokenSender(lambda chunk: chunk.error is None)
    outbox = pool.open("picky", picky)
    outbox.add_logprobs(RequestLogprobs((-0.5,), (((1,), (-0.5,)),), PromptLogprobs((-1.0, -2.0), ())), 1)
    pool.generate(outbox, 1, reason=FinishReason.STOP)
    pool.close()
    (chunk,) = picky.sent
    assert (chunk.logprobs, chunk.top_logprobs, chunk.prompt_logprobs) == ((), (), None)
