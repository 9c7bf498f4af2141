"""The table of errors is complete, and an error reads the same after Triton has carried it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.protocol.errors import ERRORS, ErrorCode, PipelineError, internal_error

# What Triton puts in front of a step's error (seen on 2.51).
PREFIXES = [
    "",
    "in ensemble 'ensemble', ",
    "in ensemble 'ensemble', Failed to process the request(s) for model 'preprocess_0_0', message: ",
]


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_a_status_and_a_type(code: ErrorCode) -> None:
    kind = ERRORS[code]
    assert 400 <= kind.status < 600
    assert kind.type
    assert kind.title


def test_table_has_no_other_codes() -> None:
    assert set(ERRORS) == set(ErrorCode)


@pytest.mark.parametrize("code", ErrorCode)
def test_retryable_codes_are_408_429_503_and_504(code: ErrorCode) -> None:
    """But for a budget of the day that is used up, which OpenAI's API has as a 429, too."""
    is_retryable = ERRORS[code].status in {408, 429, 503, 504} and code is not ErrorCode.INSUFFICIENT_QUOTA
    assert ERRORS[code].is_retryable == is_retryable


@pytest.mark.parametrize("prefix", PREFIXES, ids=["bare", "ensemble", "ensemble and backend"])
@given(
    code=st.sampled_from(ErrorCode),
    message=st.text(),
    param=st.none() | st.sampled_from(["prompt", "max_tokens", "stream_options.include_usage", "prompt[3]"]),
)
def test_error_survives_tritons_prefix(prefix: str, code: ErrorCode, message: str, param: str | None) -> None:
    error = PipelineError.from_wire(prefix + PipelineError(code, message, param=param).to_wire())
    assert error is not None
    assert (error.code, error.message, error.param, error.retry_after_s) == (code, message, param, None)


@given(st.floats(0.001, 120), st.none() | st.just("prompt"))
def test_retry_after_survives(retry_after_s: float, param: str | None) -> None:
    sent = PipelineError(ErrorCode.QUEUE_FULL, "Retry later.", param=param, retry_after_s=retry_after_s)
    error = PipelineError.from_wire(PREFIXES[2] + sent.to_wire())
    assert error is not None
    assert error.retry_after_s == pytest.approx(retry_after_s, abs=0.001)
    assert (error.message, error.param) == ("Retry later.", param)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Failed to process the request",
        "[error code=never_heard_of] x",
        "[error code=] x",
        "[error code=queue_full]x",
    ],
    ids=["empty", "Triton's own", "unknown code", "no code", "cut"],
)
def test_other_messages_are_not_parsed(text: str) -> None:
    assert PipelineError.from_wire(text) is None


def test_internal_error_contains_only_how_to_report_it() -> None:
    error = internal_error()
    assert error.kind.status == 500
    assert "x-request-id" in error.message
