"""A DecodeStage whose executor generates exactly what a test passes to it, and a sender that records chunks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from llm_pipeline.executors.port import ExecutorStats, OutputSink
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, StepOutput, TokenChunk
from llm_pipeline.stages.decode.stage import DecodeStage, DecodeTimeouts
from llm_pipeline.stages.decode.stop_string_scanner import StopStringScanner
from llm_pipeline.stages.flow_control import SendWindow
from tests.support.sample_requests import make_request

DEADLINE_S = 10.0
VOCAB_SIZE = 1000
REFUSAL = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is starting.")


def raising(error: Exception) -> Callable[..., NoReturn]:
    """A function that raises `error` whatever its arguments."""

    def raise_error(*_arguments: object) -> NoReturn:
        raise error

    return raise_error


class DrivenExecutor:
    """An Executor that generates exactly what the test passes to `generate`, in the test's thread."""

    def __init__(self, sink: OutputSink) -> None:
        self._sink = sink
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.live: set[str] = set()
        self.queued_requests = 0
        self.on_submit: Callable[[GenerationRequest], None] = lambda request: None
        self.on_cancel: Callable[[str], None] = lambda key: None

    def submit(self, request: GenerationRequest) -> None:
        self.on_submit(request)
        self.submitted.append(request.key)
        self.live.add(request.key)

    def cancel(self, key: str) -> None:
        self.cancelled.append(key)
        self.on_cancel(key)

    def stats(self) -> ExecutorStats:
        return ExecutorStats(len(self.live), self.queued_requests)

    def close(self) -> None:
        for key in sorted(self.live):
            self.generate(key, reason=FinishReason.CANCELLED)

    def generate(
        self, key: str, *token_ids: int, reason: FinishReason | None = None, error: PipelineError | None = None
    ) -> None:
        """Makes one step for one request."""
        if reason or error:
            self.live.discard(key)
        self._sink([StepOutput(key, token_ids, reason, error)])

    def emit(self, steps: Sequence[Any]) -> None:
        """Makes these steps at once, valid or not."""
        self._sink(steps)


class RecordingSender:
    """Records chunks in order. Between `hold` and `release`, `send` blocks, as in a handshake with Triton."""

    def __init__(self) -> None:
        self.chunks: list[TokenChunk] = []
        self._changed = threading.Condition()
        self._is_open = threading.Event()
        self._is_open.set()
        self._blocked = 0

    def send(self, chunk: TokenChunk) -> None:
        with self._changed:
            self._blocked += 1
            self._changed.notify_all()
        assert self._is_open.wait(DEADLINE_S)
        with self._changed:
            self._blocked -= 1
            self.chunks.append(chunk)
            self._changed.notify_all()

    def hold(self) -> None:
        self._is_open.clear()

    def release(self) -> None:
        self._is_open.set()

    def wait_until_send_blocks(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._blocked, DEADLINE_S), "nothing is being sent"

    def wait_for(self, count: int) -> list[TokenChunk]:
        """Returns the chunks so far, as soon as there are `count`."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.chunks) >= count, DEADLINE_S), self.chunks
            return list(self.chunks)

    def wait_for_endings(self, count: int = 1) -> list[TokenChunk]:
        """Returns the chunks so far, as soon as `count` of them are final."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._ending_count() >= count, DEADLINE_S), self.chunks
            return list(self.chunks)

    def _ending_count(self) -> int:
        return sum(chunk.is_final for chunk in self.chunks)


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
    """A DecodeStage over a DrivenExecutor and a RecordingSender."""

    def __init__(
        self,
        *,
        max_queued_requests: int = 100,
        coalesce: bool = True,
        window: SendWindow | None = None,
        senders: int = 1,  # so that one blocked send blocks all
        stop_string_scanner: StopStringScanner | None = None,
        timeouts: DecodeTimeouts | None = None,
    ) -> None:
        self.changes = 0
        self.on_change: Callable[[], None] = lambda: None
        self.sender = RecordingSender()
        self.executor: DrivenExecutor
        self.stage = DecodeStage(
            self._create_executor,
            max_queued_requests=max_queued_requests,
            vocab_size=VOCAB_SIZE,
            coalesce=coalesce,
            window=window,
            senders=senders,
            stop_string_scanner=stop_string_scanner,
            timeouts=timeouts or DecodeTimeouts(),
            on_change=self._count_change,
        )

    def submit(self, key: str = "a", *, stream: bool = True, max_tokens: int = 100, **text_options: Any) -> None:
        self.stage.submit(make_request(key, max_tokens=max_tokens, stream=stream, **text_options), self.sender)

    def block_sender(self) -> None:
        """Occupies the sender thread with a chunk of another request."""
        self.sender.hold()
        self.submit("blocker")
        self.executor.generate("blocker", 1)
        self.sender.wait_until_send_blocks()

    def close(self) -> None:
        self.sender.release()
        self.stage.close()

    def _create_executor(self, sink: OutputSink) -> DrivenExecutor:
        self.executor = DrivenExecutor(sink)
        return self.executor

    def _count_change(self) -> None:
        self.changes += 1
        self.on_change()
