"""The errors of guides, as their requests end with them: 400 for the guide's fault, 429 and 503 for the server's."""

from __future__ import annotations

import signal

from llm_pipeline.guides.checks import bad_guide, noun_of
from llm_pipeline.guides.guide_process import OUT_OF_MEMORY_STATUS
from llm_pipeline.guides.limits import GuideLimits
from llm_pipeline.guides.masks import process_ended
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import Guide

RETRY_AFTER_S = 5.0
_SIMPLIFY = (
    "Simplify it: for example large values of multipleOf, repeats within repeats, long alternatives or many patterns."
)
_MEMORY_STATUSES = {
    OUT_OF_MEMORY_STATUS,
    -signal.SIGABRT,  # a failed allocation
    -signal.SIGSEGV,  # a stack that reached the limit
    -signal.SIGBUS,
    -signal.SIGKILL,  # by the fork server, which ends the largest process, or by the kernel
}


def invalid_guide(guide: Guide, problem: str) -> PipelineError:
    """The error of a guide that its compiler rejects."""
    return bad_guide(f"The {noun_of(guide)} can't be used: {problem}")


def error_of_status(guide: Guide, status: int, limits: GuideLimits, *, was_ready: bool) -> PipelineError | None:
    """The error of a guide whose process ended with this status; None if that was not the guide's fault."""
    if was_ready and (status == -signal.SIGPROF or status in _MEMORY_STATUSES):
        return invalid_guide(guide, str(process_ended()))
    if status == -signal.SIGPROF:
        return bad_guide(
            f"The {noun_of(guide)} takes more than {limits.compile_cpu_s:g} s of computing to prepare. {_SIMPLIFY}"
        )
    if status in _MEMORY_STATUSES:
        cause = f"takes more than {limits.memory_mib} MiB of memory, or is nested too deeply"
        return bad_guide(f"The {noun_of(guide)} {cause}. {_SIMPLIFY}")
    return None


def queue_is_full(limit: int, whose: str) -> PipelineError:
    """The error of a guide beyond the limit of those that wait."""
    message = (
        f"{limit} requests with structured output {whose} are waiting to be prepared, which is the limit. "
        "Retry after the delay in the Retry-After header."
    )
    return PipelineError(ErrorCode.QUEUE_FULL, message, retry_after_s=RETRY_AFTER_S)


def waited_too_long(limits: GuideLimits) -> PipelineError:
    """The error of a guide that found no place in time."""
    return _unavailable(
        f"The server is too busy to prepare structured output: it did not get to this request within "
        f"{limits.wait_s:g} s. Retry later."
    )


def guides_unavailable() -> PipelineError:
    """The error of guides while their process is restarting or can't start."""
    return _unavailable("Structured output is not available at the moment. Retry shortly.")


def shutting_down() -> PipelineError:
    """The error of guides after `close`."""
    return PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is shutting down. Retry shortly.")


def _unavailable(message: str) -> PipelineError:
    return PipelineError(ErrorCode.SERVICE_UNAVAILABLE, message, retry_after_s=RETRY_AFTER_S)
