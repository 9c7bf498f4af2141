"""What a response of the engine means for its request: tokens and finish reasons in our terms."""

from __future__ import annotations

import logging
import time

from llm_pipeline.executors.tensorrt_llm.engine import Ending, EngineResponse, Failure
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, StepOutput

_log = logging.getLogger(__name__)
_RETRY_QUEUE_AFTER_S = 2.0
_RETRY_AFTER_S = 30.0  # an engine takes minutes to load; clients may ask another replica before that
_REASONS = {
    Ending.END_ID: FinishReason.STOP,
    Ending.STOP_WORDS: FinishReason.STOP,
    Ending.LENGTH: FinishReason.LENGTH,
}


class LiveRequest:
    """One request in flight."""

    __slots__ = ("cancelled_at", "end_id", "is_cancelled", "key", "last_id", "returns_log_probs", "token_count")

    def __init__(self, request: GenerationRequest) -> None:
        self.key = request.key
        self.end_id = request.stop_token_ids[0] if request.stop_token_ids else None
        self.returns_log_probs = request.return_logprobs
        self.last_id: int | None = None
        self.token_count = 0
        self.is_cancelled = False
        self.cancelled_at = 0.0  # monotonic

    def cancel(self) -> None:
        """Note the wish; upstream is told by whoever noted it."""
        self.is_cancelled, self.cancelled_at = True, time.monotonic()


def make_step(live: LiveRequest, response: EngineResponse) -> StepOutput | None:
    """The step for a response; None when it says nothing new."""
    if response.error is not None:
        return _failed(live, response.error, response.failure)
    ids = response.token_ids
    if ids:
        live.last_id = ids[-1]
    if response.ending is Ending.END_ID and live.end_id is not None and live.last_id != live.end_id:
        # Upstream leaves the end token out (its sampling kernels do not advance the length on it); our rule is that it
        # is the last one handed back. Should a release begin to include it, it is not given twice.
        ids = (*ids, live.end_id)
    log_probs = _log_probs(live, response, len(ids)) if live.returns_log_probs else ()
    live.token_count += len(ids)
    if response.ending is None:
        return StepOutput(live.key, ids, logprobs=log_probs) if ids else None
    if reason := _REASONS.get(response.ending):
        return StepOutput(live.key, ids, reason, logprobs=log_probs)
    return _unusual_end(live, response.ending)


def unavailable(message: str) -> PipelineError:
    return PipelineError(ErrorCode.ENGINE_UNAVAILABLE, message, retry_after_s=_RETRY_AFTER_S)


def queue_full() -> PipelineError:
    return PipelineError(
        ErrorCode.QUEUE_FULL, "The engine's queue is full. Retry later.", retry_after_s=_RETRY_QUEUE_AFTER_S
    )


def _failed(live: LiveRequest, words: str, failure: Failure) -> StepOutput:
    if live.is_cancelled:
        return StepOutput(live.key, finish_reason=FinishReason.CANCELLED)
    if failure is Failure.QUEUE_FULL:  # with an orchestrator it comes this way
        return StepOutput(live.key, error=queue_full())
    _log.error("the engine failed a request: %s", words)  # upstream's words are for the log, never for clients
    return StepOutput(live.key, error=_error_of(failure))


def _error_of(failure: Failure) -> PipelineError:
    if failure is Failure.PROMPT_TOO_LONG:
        return PipelineError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            "The prompt is longer than this server's engine takes with the memory that it has. Shorten the prompt.",
            param="prompt",
        )
    if failure is Failure.REQUEST:
        return PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE,
            "The engine refuses this request. Check its sampling values, its guide and its lengths.",
        )
    return internal_error()


def _unusual_end(live: LiveRequest, ending: Ending) -> StepOutput:
    if live.is_cancelled:
        return StepOutput(live.key, finish_reason=FinishReason.CANCELLED)
    if ending is Ending.TIMED_OUT:
        error = PipelineError(
            ErrorCode.DEADLINE_EXCEEDED, "The request's time limit passed before the completion was done."
        )
        return StepOutput(live.key, error=error)
    if ending is Ending.CANCELLED:  # by nobody here: the engine is on its way down
        return StepOutput(live.key, error=unavailable("The engine has dropped this request. Retry it."))
    _log.error("the engine ended a request without a reason that we know")
    return StepOutput(live.key, error=internal_error())


def _log_probs(live: LiveRequest, response: EngineResponse, count: int) -> tuple[float | None, ...]:
    """One for each of `count` tokens, None where there is none: the end token has none for certain.

    Upstream gives those of all tokens so far, also in a stream of new tokens (createResult in
    cpp/tensorrt_llm/batch_manager/llmRequest.cpp). One that gave the new ones' alone would be read as well.
    """
    values: tuple[float | None, ...] = response.log_probs
    if live.token_count and len(values) >= live.token_count + len(response.token_ids):
        values = values[live.token_count :]
    return (*values, *[None] * count)[:count]
