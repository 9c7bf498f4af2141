"""A DecodeStage whose executor generates exactly what a test passes to it, and a sender that records chunks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from llm_pipeline.executors.port import ExecutorStats, OutputSink
from llm_pipeline.protocol.channel import PreparedItem
from llm_pipeline.protocol.engine_metrics import MAX_ACTIVE
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import (
    EngineStep,
    FinishReason,
    GenerationRequest,
    RequestEnd,
    RequestLogprobs,
    TokenChunk,
)
from llm_pipeline.stages.decode.channel_sender import DEFAULT_LIMITS, ChannelLimits
from llm_pipeline.stages.decode.guide_gate import Guides
from llm_pipeline.stages.decode.queue_limits import QueueLimits
from llm_pipeline.stages.decode.stage import DecodeStage, DecodeTimeouts
from llm_pipeline.stages.decode.stop_string_scanner import StopStringScanner
from llm_pipeline.stages.flow_control import SendWindow
from tests.support.recorded_bursts import Gate, RecordingReply
from tests.support.sample_requests import make_request

DEADLINE_S = 10.0
VOCAB_SIZE = 1000
REFUSAL = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is starting.")
CLIENT = "front end"
QUEUE_LIMITS = QueueLimits(requests=100)
UNKNOWN_NUMBER = 1 << 40
"""The number of a request that the stage never submitted."""


def raising(error: Exception) -> Callable[..., NoReturn]:
    """A function that raises `error` whatever its arguments."""

    def raise_error(*_arguments: object) -> NoReturn:
        raise error

    return raise_error


def make_step(
    tokens: Mapping[int, Sequence[int]],
    *,
    ends: Iterable[RequestEnd] = (),
    logprobs: Mapping[int, RequestLogprobs] | None = None,
    begun: Mapping[int, float] | None = None,
) -> EngineStep:
    """A step with these tokens, by request number. Requests without tokens are left out of the arrays."""
    some = {number: token_ids for number, token_ids in tokens.items() if token_ids}
    counts = [len(token_ids) for token_ids in some.values()]
    return EngineStep(
        np.array(list(some), np.int64),
        np.array([token_id for token_ids in some.values() for token_id in token_ids], np.int64),
        None if all(count == 1 for count in counts) else np.array(counts, np.int64),
        ends=tuple(ends),
        logprobs=logprobs or {},
        begun=begun or {},
    )


class DrivenExecutor:
    """An Executor that generates exactly what the test passes to `generate`, in the test's thread.

    Tests name requests by their keys; a key that is used again means its last request.
    """

    def __init__(self, sink: OutputSink) -> None:
        self._sink = sink
        self._keys: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.live: set[str] = set()
        self.queued_requests = 0
        self.max_active: int | None = None  # None: not reported
        self.on_submit: Callable[[GenerationRequest], None] = lambda request: None
        self.on_cancel: Callable[[str], None] = lambda key: None

    def submit(self, number: int, request: GenerationRequest) -> None:
        assert number not in self._keys, "a number is used again"
        self._keys[number] = request.key
        self._numbers[request.key] = number
        self.on_submit(request)
        self.submitted.append(request.key)
        self.live.add(request.key)

    def cancel(self, number: int) -> None:
        key = self._keys.get(number, f"number {number}")
        self.cancelled.append(key)
        self.on_cancel(key)

    def stats(self) -> ExecutorStats:
        if self.max_active is None:
            return ExecutorStats(len(self.live), self.queued_requests)
        return ExecutorStats(len(self.live) - self.queued_requests, self.queued_requests, {MAX_ACTIVE: self.max_active})

    def close(self) -> None:
        for key in sorted(self.live):
            self.generate(key, reason=FinishReason.CANCELLED)

    def number_of(self, key: str) -> int:
        """The number of the last request with this key; one of no request if there was none."""
        return self._numbers.get(key, UNKNOWN_NUMBER)

    def generate(
        self,
        key: str,
        *token_ids: int,
        reason: FinishReason | None = None,
        error: PipelineError | None = None,
        logprobs: RequestLogprobs | None = None,
    ) -> None:
        """Makes one step for one request."""
        ends: list[RequestEnd] = []
        number = self.number_of(key)
        if reason or error:
            self.live.discard(key)
            ends.append(RequestEnd(number, reason, error))
        self.emit(make_step({number: token_ids}, ends=ends, logprobs={number: logprobs} if logprobs else None))

    def generate_for(self, tokens: Mapping[str, Sequence[int]], *, ends: Iterable[str] = ()) -> None:
        """Makes one step for several requests; `ends` are the keys of those that stop with it."""
        ends = tuple(ends)
        self.live.difference_update(ends)
        self.emit(
            make_step(
                {self.number_of(key): token_ids for key, token_ids in tokens.items()},
                ends=[RequestEnd(self.number_of(key), FinishReason.STOP) for key in ends],
            )
        )

    def emit(self, step: Any) -> None:
        """Makes this step, valid or not."""
        self._sink(step)


class RecordingSender:
    """Records chunks in order. Between `hold` and `release`, `send` blocks, as in a handshake with Triton."""

    def __init__(self) -> None:
        self.chunks: list[TokenChunk] = []
        self._gate = Gate()
        self.hold = self._gate.hold
        self.release = self._gate.release
        self.wait_until_send_blocks = self._gate.wait_until_blocked

    def send(self, chunk: TokenChunk) -> None:
        self._gate.pass_through(lambda: self.chunks.append(chunk))

    def wait_for(self, count: int) -> list[TokenChunk]:
        """Returns the chunks so far, as soon as there are `count`."""
        self._gate.wait_for(lambda: len(self.chunks) >= count, lambda: self.chunks)
        return list(self.chunks)

    def wait_for_endings(self, count: int = 1) -> list[TokenChunk]:
        """Returns the chunks so far, as soon as `count` of them are final."""
        self._gate.wait_for(lambda: sum(chunk.is_final for chunk in self.chunks) >= count, lambda: self.chunks)
        return list(self.chunks)


class BrokenSender:
    """Raises for the chunks that `fails_for` selects, and records the others."""

    def __init__(self, fails_for: Callable[[TokenChunk], bool] = lambda chunk: True) -> None:
        self._fails_for = fails_for
        self.sent: list[TokenChunk] = []
        self.failed = threading.Event()

    def send(self, chunk: TokenChunk) -> None:
        if self._fails_for(chunk):
            self.failed.set()
            raise RuntimeError("no room in shared memory")
        self.sent.append(chunk)


class DrivenStage:
    """A DecodeStage over a DrivenExecutor. Single requests go to `sender`; bundles get slots from 0 upwards."""

    def __init__(
        self,
        *,
        queue_limits: QueueLimits = QUEUE_LIMITS,
        coalesce: bool = True,
        create_window: Callable[[int], SendWindow] | None = None,
        senders: int = 1,  # so that one blocked send blocks all
        stop_string_scanner: StopStringScanner | None = None,
        guides: Guides | None = None,
        timeouts: DecodeTimeouts | None = None,
        channel_limits: ChannelLimits = DEFAULT_LIMITS,
    ) -> None:
        self.changes = 0
        self.on_change: Callable[[], None] = lambda: None
        self.sender = RecordingSender()
        self.replies: list[RecordingReply] = []
        self.executor: DrivenExecutor
        self._next_slot = 0
        self.stage = DecodeStage(
            self._create_executor,
            queue_limits=queue_limits,
            vocab_size=VOCAB_SIZE,
            coalesce=coalesce,
            create_window=create_window,
            senders=senders,
            stop_string_scanner=stop_string_scanner,
            guides=guides,
            timeouts=timeouts or DecodeTimeouts(),
            channel_limits=channel_limits,
            on_change=self._count_change,
        )

    def submit(self, key: str = "a", *, stream: bool = True, max_tokens: int = 100, **text_options: Any) -> None:
        self.submit_request(make_request(key, max_tokens=max_tokens, stream=stream, **text_options))

    def submit_request(self, request: GenerationRequest) -> None:
        self.stage.submit(request, self.sender)

    def submit_bundle(self, *keys: str, client_id: str = CLIENT, max_tokens: int = 100, **text_options: Any) -> None:
        """Submits one request for each key."""
        requests = [make_request(key, max_tokens=max_tokens, stream=True, **text_options) for key in keys]
        self.stage.submit_bundle(client_id, self.items(*requests))

    def items(self, *requests: GenerationRequest | PipelineError) -> list[PreparedItem]:
        """The items of a bundle, with the next slots."""
        items = []
        for request in requests:
            if isinstance(request, PipelineError):
                items.append(PreparedItem(self._next_slot, error=request))
            else:
                items.append(PreparedItem(self._next_slot, request))
            self._next_slot += 1
        return items

    def open_channel(self, client_id: str = CLIENT, reply: RecordingReply | None = None) -> RecordingReply:
        reply = reply or RecordingReply()
        self.replies.append(reply)
        self.stage.open_channel(client_id, reply)
        return reply

    def block_sender(self) -> None:
        """Occupies the sender thread with a chunk of another request."""
        self.sender.hold()
        self.submit("blocker")
        self.executor.generate("blocker", 1)
        self.sender.wait_until_send_blocks()

    def close(self) -> None:
        self.sender.release()
        for reply in self.replies:
            reply.release()
        self.stage.close()

    def _create_executor(self, sink: OutputSink) -> DrivenExecutor:
        self.executor = DrivenExecutor(sink)
        return self.executor

    def _count_change(self) -> None:
        self.changes += 1
        self.on_change()
