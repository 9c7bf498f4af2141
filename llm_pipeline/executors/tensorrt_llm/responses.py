"""Converts responses of the engine to output: tokens, finish reasons and errors in our terms."""

from __future__ import annotations

import logging
import time

from llm_pipeline.executors.step_builder import RequestOutput
from llm_pipeline.executors.tensorrt_llm.engine import Ending, EngineResponse, FailureKind
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, RequestLogprobs, TopLogprobs

_log = logging.getLogger(__name__)
NO_TOPS: TopLogprobs = ((), ())
_RETRY_QUEUE_AFTER_S = 2.0
_RETRY_AFTER_S = 30.0  # loading takes minutes; clients may try another replica before that
_REASONS = {
    Ending.END_ID: FinishReason.STOP,
    Ending.STOP_WORDS: FinishReason.STOP,
    Ending.LENGTH: FinishReason.LENGTH,
}


class LiveRequest:
    """A request that the engine is working on."""

    __slots__ = (
        "begun_s",
        "cancelled_at",
        "end_id",
        "is_cancelled",
        "is_guided",
        "last_id",
        "number",
        "returns_logprobs",
        "token_count",
    )

    def __init__(self, number: int, request: GenerationRequest) -> None:
        self.number = number
        self.begun_s = time.monotonic()  # when the engine got it; its own queue is not visible from here
        self.end_id = request.stop_token_ids[0] if request.stop_token_ids else None
        self.returns_logprobs = request.return_logprobs
        self.is_guided = request.guide is not None
        self.last_id: int | None = None
        self.token_count = 0
        self.is_cancelled = False
        self.cancelled_at = 0.0  # monotonic

    @property
    def may_compile_guide(self) -> bool:
        """Whether the engine may be compiling its guide: it does so in the first step of the request."""
        return self.is_guided and self.token_count == 0

    def cancel(self) -> None:
        """Marks the request as cancelled; the caller cancels it upstream."""
        self.is_cancelled, self.cancelled_at = True, time.monotonic()


def to_output(live: LiveRequest, response: EngineResponse) -> RequestOutput | None:
    """Returns the output of a response; None if it contains nothing new."""
    if response.error is not None:
        return _failed(live, response.error, response.failure)
    ids = response.token_ids
    if ids:
        live.last_id = ids[-1]
    if response.ending is Ending.END_ID and live.end_id is not None and live.last_id != live.end_id:
        # Upstream omits the end token (its sampling kernels do not advance the length on it), but our output ends with
        # it. If a release begins to include it, it is not added twice.
        ids = (*ids, live.end_id)
    logprobs = _request_logprobs(live, response, len(ids)) if live.returns_logprobs else None
    live.token_count += len(ids)
    if response.ending is None:
        return RequestOutput(ids, logprobs=logprobs) if ids else None
    if reason := _REASONS.get(response.ending):
        return RequestOutput(ids, reason, logprobs=logprobs)
    return _unusual_end(live, response.ending)


def unavailable(message: str) -> PipelineError:
    """Returns the error (503) for an engine that is down."""
    return PipelineError(ErrorCode.ENGINE_UNAVAILABLE, message, retry_after_s=_RETRY_AFTER_S)


def queue_full() -> PipelineError:
    """Returns the error (429) for a full queue of the engine."""
    return PipelineError(
        ErrorCode.QUEUE_FULL, "The engine's queue is full. Retry later.", retry_after_s=_RETRY_QUEUE_AFTER_S
    )


def deadline_exceeded() -> PipelineError:
    """Returns the error (504) for a request whose time limit has passed."""
    return PipelineError(
        ErrorCode.DEADLINE_EXCEEDED, "The request exceeded its time limit. Lower max_tokens or raise the limit."
    )


def _failed(live: LiveRequest, message: str, failure: FailureKind) -> RequestOutput:
    if live.is_cancelled:
        return RequestOutput(finish_reason=FinishReason.CANCELLED)
    if failure is FailureKind.QUEUE_FULL:  # with an orchestrator, a response instead of an exception
        return RequestOutput(error=queue_full())
    _log.error("the engine failed a request: %s", message)  # upstream's messages are not for clients
    return RequestOutput(error=_error_of(failure))


def _error_of(failure: FailureKind) -> PipelineError:
    if failure is FailureKind.PROMPT_TOO_LONG:
        return PipelineError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            "The prompt is too long for the memory of this server's engine. Shorten the prompt.",
            param="prompt",
        )
    if failure is FailureKind.REQUEST:
        return PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE,
            "The engine rejected this request. Check its sampling parameters, guide, prompt length and max_tokens.",
        )
    return internal_error()


def _unusual_end(live: LiveRequest, ending: Ending) -> RequestOutput:
    if live.is_cancelled:
        return RequestOutput(finish_reason=FinishReason.CANCELLED)
    if ending is Ending.TIMED_OUT:
        return RequestOutput(error=deadline_exceeded())
    if ending is Ending.CANCELLED:  # not by us: the engine is shutting down
        return RequestOutput(error=unavailable("The engine dropped this request. Retry it."))
    _log.error("the engine ended a request for an unknown reason")
    return RequestOutput(error=internal_error())


def _request_logprobs(live: LiveRequest, response: EngineResponse, count: int) -> RequestLogprobs:
    """Returns the logprobs of `count` tokens. An end token that the response does not contain has none."""
    tops = response.top_logprobs
    if tops:
        tops = (*tops, *[NO_TOPS] * count)[:count]
    return RequestLogprobs(_logprobs(live, response, count), tops, response.prompt_logprobs)


def _logprobs(live: LiveRequest, response: EngineResponse, count: int) -> tuple[float | None, ...]:
    """Returns one logprob for each of `count` tokens; None where upstream has none, as for the end token.

    Upstream returns the logprobs of all tokens so far, also in a stream of new tokens (createResult in
    cpp/tensorrt_llm/batch_manager/llmRequest.cpp). A list of the new ones alone is accepted, too.
    """
    values: tuple[float | None, ...] = response.logprobs
    if live.token_count and len(values) >= live.token_count + len(response.token_ids):
        values = values[live.token_count :]
    return (*values, *[None] * count)[:count]
