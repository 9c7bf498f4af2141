"""One HTTP request's choices while the engine works for them: merges their chunks and ends them early if need be.

Each choice has a pump, a task that iterates over the generator to its end, whoever still listens: an abandoned choice
is stopped by a message to decode, and its pump goes on until the engine has confirmed. So the end of a pump is the
end of the engine's work. The answer waits for `changed`, takes what has arrived, and looks at `failure`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Protocol

import structlog

from frontend.backends.generator import Generator
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import GUIDE_PARAM, CompletionParameters, FinishReason, TextChunk
from llm_pipeline.text import logprobs as log_prob_list

log = structlog.get_logger(__name__)

# How long the engine may take to confirm the end of a request, and how often it is told again: a stop that overtakes
# its own request on the way to decode would be lost otherwise.
LINGER_S = 30.0
_FIRST_REPEAT_S = 0.5
_MAX_REPEAT_S = 5.0
# What a client has not taken yet: chunks beyond as many are merged into one for each choice, and a client that leaves
# more text than that untaken is let go. A chunk object weighs about as much as the text of a hundred tokens.
_MERGE_CHUNKS = 512
_MAX_UNTAKEN_CHARACTERS = 2**20


class CancelReason(str, Enum):
    """Why a request was stopped before its end. The label of a metric."""

    CLIENT_GONE = "client_gone"
    DEADLINE = "deadline"
    DRAIN = "drain"
    SLOW_READER = "slow_reader"
    TRITON_LOST = "triton_lost"
    OTHER_CHOICE_FAILED = "other_choice_failed"


@dataclass(eq=False)
class Choice:
    """One completion of one prompt, and what is known about it so far."""

    index: int
    prompt_index: int
    parameters: CompletionParameters
    prompt_tokens: int = 0
    completion_tokens: int = 0
    last_chunk_s: float = 0.0  # monotonic; 0 before the first
    finish_reason: FinishReason | None = None
    pump: asyncio.Task[None] | None = None
    give_up_timer: asyncio.TimerHandle | None = None


class RunObserver(Protocol):
    """Is told what happens to the choices of a run, for metrics, limits and readiness."""

    def on_chunk(self, choice: Choice, chunk: TextChunk) -> None:
        """A chunk has arrived; `choice` is still as it was before."""

    def on_failure(self, error: PipelineError) -> None:
        """The engine failed a choice."""

    def on_cancel(self, reason: CancelReason) -> None:
        """Choices that were still running are being stopped."""

    def on_end(self, choice: Choice) -> None:
        """The engine is done with a choice, whatever became of it. Exactly once for each."""


class CompletionRun:
    """See the module. All methods belong to the event loop's thread."""

    def __init__(self, choices: Sequence[Choice], generator: Generator, listener: RunObserver) -> None:
        self.choices = choices
        self.failure: PipelineError | None = None
        self.is_abandoned = False
        self.generator = generator
        self._listener = listener
        self._unfinished = len(choices)
        self._arrived: list[tuple[Choice, TextChunk]] = []
        self._untaken_characters = 0
        self._merge_at = _MERGE_CHUNKS
        self._waiter: asyncio.Future[None] | None = None
        self._is_stopping = False
        self._stoppers: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Send all choices to the engine."""
        for choice in self.choices:
            choice.pump = asyncio.create_task(self._pump(choice))

    @property
    def is_finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return self._unfinished == 0

    async def changed(self) -> None:
        """Returns when there is something to take, a failure, or somebody called `wake`. One waiter at a time."""
        if self._arrived or self.failure or self.is_abandoned:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self) -> list[tuple[Choice, TextChunk]]:
        """All chunks that have arrived since the last call, in order."""
        arrived, self._arrived = self._arrived, []
        self._untaken_characters, self._merge_at = 0, _MERGE_CHUNKS
        return arrived

    def wake(self) -> None:
        """Makes `changed` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: PipelineError, reason: CancelReason) -> None:
        """End the run with an error for the client, and stop what still runs. The first error counts."""
        if self.failure is None and not self.is_finished:
            self.failure = error
        self.cancel(reason)
        self.wake()

    def abandon(self) -> None:
        """The client is gone: stop what still runs."""
        self.is_abandoned = True
        self.cancel(CancelReason.CLIENT_GONE)
        self.wake()

    def cancel(self, reason: CancelReason) -> None:
        """Have the engine end every choice without a finish reason. Returns at once; a second call does nothing."""
        running = [choice for choice in self.choices if not _is_over(choice)]
        if self._is_stopping or not running:
            return
        self._is_stopping = True
        self._listener.on_cancel(reason)
        for choice in running:
            self._in_background(self._stop_until_over(choice))

    @property
    def is_over(self) -> bool:
        """Whether the engine is done with every choice."""
        return all(_is_pump_over(choice) for choice in self.choices)

    async def wait_until_over(self, timeout_s: float) -> None:
        """Returns when the engine is done with every choice, or after the timeout."""
        await asyncio.wait([choice.pump for choice in self.choices if choice.pump], timeout=timeout_s)

    async def _pump(self, choice: Choice) -> None:
        try:
            async for chunk in self.generator.generate(choice.parameters):
                self._receive(choice, chunk)
            if choice.finish_reason is None and not self._is_stopping:
                raise PipelineError(
                    ErrorCode.SERVICE_UNAVAILABLE, "The engine ended this completion early; try again shortly."
                )
        except PipelineError as error:
            self._choice_failed(choice, error)
        except Exception:
            log.exception("generator_failed", request_id=choice.parameters.request_id)
            self._choice_failed(choice, internal_error())
        finally:
            if choice.give_up_timer is not None:
                choice.give_up_timer.cancel()
            self._listener.on_end(choice)

    def _receive(self, choice: Choice, chunk: TextChunk) -> None:
        if choice.finish_reason is not None:
            return
        self._listener.on_chunk(choice, chunk)
        choice.completion_tokens = chunk.completion_tokens
        if chunk.prompt_tokens is not None:
            choice.prompt_tokens = chunk.prompt_tokens
        if self._is_stopping or chunk.finish_reason is FinishReason.CANCELLED:
            return  # nobody waits for it; a cancellation that we did not ask for fails at the end of the stream
        if chunk.finish_reason is not None:
            choice.finish_reason = chunk.finish_reason
            choice.give_up_timer = asyncio.get_running_loop().call_later(LINGER_S, _give_up, choice)
            self._unfinished -= 1
        self._arrived.append((choice, chunk))
        self._untaken_characters += len(chunk.text)
        if len(self._arrived) >= self._merge_at:
            self._merge_arrived()
        self.wake()

    def _merge_arrived(self) -> None:
        """Nobody takes anything for a while: a client that reads slowly. Keep it small, or let it go."""
        by_choice: dict[Choice, list[TextChunk]] = {}
        for choice, chunk in self._arrived:
            by_choice.setdefault(choice, []).append(chunk)
        self._arrived = [(choice, merge_chunks(chunks)) for choice, chunks in by_choice.items()]
        self._merge_at = len(self._arrived) + _MERGE_CHUNKS
        if self._untaken_characters > _MAX_UNTAKEN_CHARACTERS and not self.is_finished:
            message = "The answer was not read for too long."
            self.fail(PipelineError(ErrorCode.DEADLINE_EXCEEDED, message), CancelReason.SLOW_READER)

    def _choice_failed(self, choice: Choice, error: PipelineError) -> None:
        if choice.finish_reason is not None:
            log.warning("failed_after_its_end", request_id=choice.parameters.request_id, error=error.code.value)
            return
        if self._is_stopping:
            return
        self._listener.on_failure(error)
        self.fail(self._as_named_by_client(choice, error), CancelReason.OTHER_CHOICE_FAILED)

    def _as_named_by_client(self, choice: Choice, error: PipelineError) -> PipelineError:
        """Triton sees one prompt; the client may have sent several and wants to know which one it was. Its name for a
        guide is its own, too.
        """
        if error.param == GUIDE_PARAM:
            error.param = choice.parameters.guide_param
        if error.param == "prompt" and self.choices[-1].prompt_index > 0:
            error.param = f"prompt[{choice.prompt_index}]"
        return error

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._stoppers.add(task)
        task.add_done_callback(self._stoppers.discard)

    async def _stop_until_over(self, choice: Choice) -> None:
        repeat_s, waited_s = _FIRST_REPEAT_S, 0.0
        while waited_s < LINGER_S and not _is_pump_over(choice):
            try:
                await self.generator.cancel(choice.parameters.request_key)
            except PipelineError as error:
                log.warning("stop_failed", request_id=choice.parameters.request_id, error=error.code.value)
            await _wait_for_pump(choice, repeat_s)
            waited_s += repeat_s
            repeat_s = min(repeat_s * 2, _MAX_REPEAT_S)
        _give_up(choice)


def merge_chunks(chunks: Sequence[TextChunk]) -> TextChunk:
    """Chunks of one choice as one: text, lists and log probs add up, of the rest the latest that was set counts."""
    values: dict[str, Any] = {}
    for field in fields(TextChunk):
        found = [value for chunk in chunks if (value := getattr(chunk, field.name)) is not None]
        if not found:
            values[field.name] = None
        elif isinstance(found[0], str) and not isinstance(found[0], Enum):
            values[field.name] = "".join(found)
        elif isinstance(found[0], bytes):
            values[field.name] = log_prob_list.joined(found)
        elif isinstance(found[0], tuple):
            values[field.name] = tuple(item for value in found for item in value)
        else:
            values[field.name] = found[-1]
    return TextChunk(**values)


def _is_over(choice: Choice) -> bool:
    return choice.finish_reason is not None or _is_pump_over(choice)


def _is_pump_over(choice: Choice) -> bool:
    return choice.pump is None or choice.pump.done()


async def _wait_for_pump(choice: Choice, timeout_s: float) -> None:
    if choice.pump is not None:
        await asyncio.wait({choice.pump}, timeout=timeout_s)


def _give_up(choice: Choice) -> None:
    if choice.pump is not None and not choice.pump.done():
        log.error("engine_does_not_end_request", request_id=choice.parameters.request_id)
        choice.pump.cancel()
