"""Runs the choices of one HTTP request: merges their chunks, and cancels the choices that are no longer wanted.

Each choice has a stream task that awaits the generator to the end, even if the client has gone: an abandoned choice is
cancelled by a message to decode, and its task continues until the engine has confirmed. So the end of the stream task
is the end of the engine's work. The response waits for `changed`, takes the chunks that have arrived, and checks
`failure`. While it waits, it may also take chunks in the moment in which they arrive (TakeChunk).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import partial
from typing import Any, Protocol, TypeAlias

import structlog

from frontend.backends.background_tasks import BackgroundTasks
from frontend.backends.cancellation import CancelTimeouts, abandon_later, cancel_until_done
from frontend.backends.generator import Generator
from frontend.generation.client_names import in_client_terms
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from llm_pipeline.text import logprobs

log = structlog.get_logger(__name__)

_CHUNK_FIELDS = tuple(chunk_field.name for chunk_field in fields(TextChunk))


@dataclass(frozen=True)
class RunLimits:
    """Limits of one request while it runs. A chunk object takes about as much memory as the text of 100 tokens."""

    merge_chunks: int = 512  # untaken chunks beyond this number are merged into one for each choice
    max_untaken_characters: int = 2**20  # a client that leaves more text and logprobs than this untaken is disconnected
    cancel: CancelTimeouts = field(default_factory=CancelTimeouts)
    write_grace_s: float = 10.0  # after the deadline, until a response whose writing is blocked is aborted


class CancelReason(str, Enum):
    """Why a request was cancelled. The label of a metric."""

    CLIENT_GONE = "client_gone"
    DEADLINE = "deadline"
    DRAIN = "drain"
    KEY_REVOKED = "key_revoked"
    SLOW_READER = "slow_reader"
    TRITON_LOST = "triton_lost"
    OTHER_CHOICE_FAILED = "other_choice_failed"


@dataclass(eq=False)
class Choice:
    """One completion of one prompt, and its progress."""

    index: int
    prompt_index: int
    parameters: CompletionParameters
    prompt_tokens: int = 0
    completion_tokens: int = 0
    last_chunk_s: float = 0.0  # monotonic; 0 before the first
    finish_reason: FinishReason | None = None
    stream_task: asyncio.Task[None] | None = None
    abandon_timer: asyncio.TimerHandle | None = None

    @property
    def is_drained(self) -> bool:
        """Whether the engine has nothing more to do for this choice."""
        return self.stream_task is None or self.stream_task.done()


# Takes a chunk in the moment in which it arrives, before the response wakes. Returns False to leave it for `take`.
TakeChunk: TypeAlias = Callable[[Choice, TextChunk], bool]


class RunObserver(Protocol):
    """Receives the events of a run's choices, for metrics, limits and readiness."""

    def on_chunk(self, choice: Choice, chunk: TextChunk) -> None:
        """A chunk has arrived; `choice` does not yet include it."""

    def on_failure(self, error: PipelineError) -> None:
        """The engine failed a choice."""

    def on_cancel(self, reason: CancelReason) -> None:
        """The choices that are still running are being cancelled."""

    def on_end(self, choice: Choice) -> None:
        """The engine's work for a choice has ended, for any reason. Called exactly once for each choice."""


class CompletionRun:
    """The choices of one request from `start` to the end of the engine's work. Belongs to the event loop's thread."""

    def __init__(
        self,
        choices: Sequence[Choice],
        generator: Generator,
        observer: RunObserver,
        limits: RunLimits | None = None,
    ) -> None:
        self.choices = choices
        self.failure: PipelineError | None = None
        self.is_abandoned = False
        self.generator = generator
        self.limits = limits or RunLimits()
        self._observer = observer
        self._unfinished = len(choices)
        self._arrived: list[tuple[Choice, TextChunk]] = []
        self._untaken_characters = 0
        self._merge_at = self.limits.merge_chunks
        self._waiter: asyncio.Future[None] | None = None
        self._take_chunk: TakeChunk | None = None  # only while the waiter waits: chunks must not overtake each other
        self._is_cancelling = False
        self._cancellations = BackgroundTasks()

    def start(self) -> None:
        """Sends all choices to the engine."""
        for choice in self.choices:
            choice.stream_task = asyncio.create_task(self._drain(choice))

    @property
    def is_finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return self._unfinished == 0

    @property
    def untaken_characters(self) -> int:
        """Length of the text and logprobs that have arrived and have not been taken."""
        return self._untaken_characters

    @property
    def untaken_chunks(self) -> int:
        """Number of chunks that have arrived and have not been taken."""
        return len(self._arrived)

    async def changed(self, take_chunk: TakeChunk | None = None) -> None:
        """Returns when there are chunks to take or a failure, and after `abandon` or `wake`. One waiter at a time.

        A chunk that `take_chunk` takes does not make it return.
        """
        if self._arrived or self.failure or self.is_abandoned:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        self._take_chunk = take_chunk
        try:
            await self._waiter
        finally:
            self._waiter = self._take_chunk = None

    def take(self) -> list[tuple[Choice, TextChunk]]:
        """Returns all chunks that have arrived since the last call, in order."""
        arrived, self._arrived = self._arrived, []
        self._untaken_characters, self._merge_at = 0, self.limits.merge_chunks
        return arrived

    def wake(self) -> None:
        """Makes `changed` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
            self._take_chunk = None

    def fail(self, error: PipelineError, reason: CancelReason) -> None:
        """Ends the run with an error for the client, and cancels its running choices. The first error is reported."""
        if self.failure is None and not self.is_finished:
            self.failure = in_client_terms(error, self.choices[0].parameters)
        self.cancel(reason)
        self.wake()

    def abandon(self) -> None:
        """Cancels the running choices because the client is gone."""
        self.is_abandoned = True
        self.cancel(CancelReason.CLIENT_GONE)
        self.wake()

    def cancel(self, reason: CancelReason) -> None:
        """Cancels every choice without a finish reason, in the background. A second call does nothing."""
        running = [choice for choice in self.choices if choice.finish_reason is None and not choice.is_drained]
        if self._is_cancelling or not running:
            return
        self._is_cancelling = True
        self._observer.on_cancel(reason)
        for choice in running:
            if choice.stream_task is not None:
                self._cancellations.start(
                    cancel_until_done(self.generator, choice.parameters, choice.stream_task, self.limits.cancel)
                )

    async def _drain(self, choice: Choice) -> None:
        try:
            await self.generator.generate(choice.parameters, partial(self._receive, choice))
            if choice.finish_reason is None and not self._is_cancelling:
                raise PipelineError(
                    ErrorCode.SERVICE_UNAVAILABLE, "The engine ended this completion early. Retry the request."
                )
        except PipelineError as error:
            self._choice_failed(choice, error)
        except Exception:
            log.exception("generator_failed", request_id=choice.parameters.request_id)
            self._choice_failed(choice, internal_error())
        finally:
            if choice.abandon_timer is not None:
                choice.abandon_timer.cancel()
            self._observer.on_end(choice)

    def _receive(self, choice: Choice, chunk: TextChunk) -> None:
        """The generator's callback. Never raises: the generator may have chunks of other requests to deliver."""
        try:
            self._accept(choice, chunk)
        except Exception:
            log.exception("chunk_not_accepted", request_id=choice.parameters.request_id)
            self.fail(internal_error(), CancelReason.OTHER_CHOICE_FAILED)

    def _accept(self, choice: Choice, chunk: TextChunk) -> None:
        if choice.finish_reason is not None:
            return
        self._observer.on_chunk(choice, chunk)
        # Counts only grow, but the last chunk of a cancelled request has none.
        choice.completion_tokens = max(choice.completion_tokens, chunk.completion_tokens)
        if chunk.prompt_tokens is not None:
            choice.prompt_tokens = chunk.prompt_tokens
        if self._is_cancelling or chunk.finish_reason is FinishReason.CANCELLED:
            return  # not for the client; a cancellation that this run did not request fails at the end of the stream
        if chunk.finish_reason is not None:
            self._finish(choice, chunk.finish_reason)
        if self._take_chunk is not None and self._take_chunk(choice, chunk):
            return
        self._arrived.append((choice, chunk))
        self._untaken_characters += len(chunk.text) + len(chunk.logprobs_json or b"")
        if len(self._arrived) >= self._merge_at:
            self._merge_arrived()
        self.wake()

    def _finish(self, choice: Choice, reason: FinishReason) -> None:
        choice.finish_reason = reason
        self._unfinished -= 1
        choice.abandon_timer = abandon_later(choice.stream_task, choice.parameters.request_id, self.limits.cancel)

    def _merge_arrived(self) -> None:
        """The client is reading slowly: merges the untaken chunks, and fails the run beyond the limit."""
        by_choice: dict[Choice, list[TextChunk]] = {}
        for choice, chunk in self._arrived:
            by_choice.setdefault(choice, []).append(chunk)
        self._arrived = [(choice, merge_chunks(chunks)) for choice, chunks in by_choice.items()]
        self._merge_at = len(self._arrived) + self.limits.merge_chunks
        if self._untaken_characters > self.limits.max_untaken_characters and not self.is_finished:
            message = "The connection was closed because the client stopped reading the response."
            self.fail(PipelineError(ErrorCode.DEADLINE_EXCEEDED, message), CancelReason.SLOW_READER)

    def _choice_failed(self, choice: Choice, error: PipelineError) -> None:
        if choice.finish_reason is not None:
            log.warning("failed_after_finish_reason", request_id=choice.parameters.request_id, error=error.code.value)
            return
        if self._is_cancelling:
            return
        self._observer.on_failure(error)
        self.fail(self._with_client_param(choice, error), CancelReason.OTHER_CHOICE_FAILED)

    def _with_client_param(self, choice: Choice, error: PipelineError) -> PipelineError:
        """Names one of several prompts by its index. `fail` replaces the other names, which are those of any choice."""
        if error.param == "prompt" and self.choices[-1].prompt_index > 0:
            return error.with_param(f"prompt[{choice.prompt_index}]")
        return error


def merge_chunks(chunks: Sequence[TextChunk]) -> TextChunk:
    """Merges chunks of one choice: text, lists and logprobs are concatenated, other fields keep their latest value."""
    merged: dict[str, Any] = {}
    for name in _CHUNK_FIELDS:
        values = [value for chunk in chunks if (value := getattr(chunk, name)) is not None]
        if not values:
            merged[name] = None
        elif isinstance(values[0], str) and not isinstance(values[0], Enum):
            merged[name] = "".join(values)
        elif isinstance(values[0], bytes):
            merged[name] = logprobs.joined(values)
        elif isinstance(values[0], tuple):
            merged[name] = tuple(item for value in values for item in value)
        else:
            merged[name] = values[-1]
    return TextChunk(**merged)
