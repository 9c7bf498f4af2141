"""Integers are read exactly, whatever their size and however they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.request.parsing import parse_object, validate
from frontend.request.schemas import COMPLETION_FORM, CompletionRequest
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

INT64_MAX = 2**63 - 1


def in_body(name: str, literal: str) -> CompletionRequest:
    """The request with a number as it is written in the body."""
    body = b'{"model": "m", "prompt": "Hi", "%s": %s}' % (name.encode(), literal.encode())
    return validate(COMPLETION_FORM, parse_object(body), max_choices=8, is_strict=False)[0]


@pytest.mark.parametrize("name", ["seed", "top_k"])
@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("1.0", 1),
        ("1e3", 1000),
        ("12.5e1", 125),
        ("9007199254740993.0", 2**53 + 1),
        ("9223372036854775807", INT64_MAX),
        ("9223372036854775807.0", INT64_MAX),
        ("1e18", 10**18),
        ("9.223372036854775807e18", INT64_MAX),
    ],
)
def test_integers_are_read_exactly_however_they_are_written(name: str, literal: str, value: int) -> None:
    assert getattr(in_body(name, literal), name) == value


@pytest.mark.parametrize(
    ("literal", "code"),
    [
        ("-9223372036854775809", ErrorCode.VALUE_OUT_OF_RANGE),
        ("-9223372036854775809.0", ErrorCode.VALUE_OUT_OF_RANGE),
        ("9223372036854775808", ErrorCode.VALUE_OUT_OF_RANGE),
        ("9223372036854775808.0", ErrorCode.VALUE_OUT_OF_RANGE),
        ("18446744073709551616", ErrorCode.VALUE_OUT_OF_RANGE),
        ("-" + "9" * 300, ErrorCode.VALUE_OUT_OF_RANGE),
        ("1e300", ErrorCode.VALUE_OUT_OF_RANGE),
        ("1.5", ErrorCode.INVALID_TYPE),
        ("9007199254740992.5", ErrorCode.INVALID_TYPE),
        ("true", ErrorCode.INVALID_TYPE),
        ('"1"', ErrorCode.INVALID_TYPE),
    ],
)
def test_integers_out_of_range_are_refused_however_they_are_written(literal: str, code: ErrorCode) -> None:
    with pytest.raises(PipelineError) as caught:
        in_body("seed", literal)
    assert (caught.value.code, caught.value.param) == (code, "seed")
    if code is ErrorCode.VALUE_OUT_OF_RANGE:
        assert str(INT64_MAX if literal[0] != "-" else -(2**63)) in caught.value.message


INTEGER_FIELDS = {
    "seed": (-(2**63), INT64_MAX),
    "top_k": (-1, INT64_MAX),
    "max_tokens": (1, 2**31 - 1),
    "max_completion_tokens": (1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "priority": (1 - 2**31, 2**31 - 1),
    "logprobs": (0, 20),
    "n": (1, 8),
    "best_of": (1, 8),
    "truncate_prompt_tokens": (-1, 2**31 - 1),
}


@given(
    st.sampled_from(sorted(INTEGER_FIELDS)),
    st.one_of(st.integers(), st.integers(-(2**65), 2**65), st.sampled_from([2**bits for bits in (31, 53, 63, 64)])),
    st.integers(-2, 2),
)
def test_every_integer_field_has_exact_bounds(name: str, near: int, offset: int) -> None:
    value, (low, high) = near + offset, INTEGER_FIELDS[name]
    if low <= value <= high and (name, value) != ("truncate_prompt_tokens", 0):
        assert getattr(in_body(name, str(value)), name) == value
        return
    with pytest.raises(PipelineError) as caught:
        in_body(name, str(value))
    assert (caught.value.code, caught.value.param) == (ErrorCode.VALUE_OUT_OF_RANGE, name)


@given(st.integers(-(2**63), INT64_MAX))
def test_a_seed_is_the_same_with_a_fraction_of_zero(seed: int) -> None:
    assert in_body("seed", f"{seed}.0").seed == in_body("seed", str(seed)).seed == seed


def test_number_beyond_doubles_is_named_as_such() -> None:
    with pytest.raises(PipelineError, match="beyond the range of doubles"):
        parse_object(b'{"seed": 1' + b"0" * 400 + b"}")
