"""Each row of the contract's field table, and each rule about bodies."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.request.parsing import MAX_DEPTH, parse_object, validate
from frontend.request.schemas import COMPLETION_FORM, CompletionRequest
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from tests.support import request_fields

REQUIRED = {"model": "m", "prompt": "Hi"}


def read(fields: dict[str, Any], *, is_strict: bool = False) -> CompletionRequest:
    return validate(COMPLETION_FORM, {**REQUIRED, **fields}, max_choices=8, is_strict=is_strict)[0]


def refusal(fields: dict[str, Any], *, is_strict: bool = False) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        read(fields, is_strict=is_strict)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        *request_fields.ACCEPTED,
        ({"prompt": "Hi"}, "prompt", ("Hi",)),
        ({"prompt": ["a", "b"]}, "prompt", ("a", "b")),
        ({"prompt": [1, 2]}, "prompt", ((1, 2),)),
        ({"prompt": [1.0, 2]}, "prompt", ((1, 2),)),
        ({"prompt": [[1], [2, 3]]}, "prompt", ((1,), (2, 3))),
        ({"prompt": " "}, "prompt", (" ",)),
        ({"prompt": "\x00{}\U0001f600"}, "prompt", ("\x00{}\U0001f600",)),
        ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids", True),
        ({"n": 2, "best_of": 4}, "candidates", 4),
        ({"n": 2, "best_of": None}, "candidates", 2),
        ({"best_of": 1, "stream": True}, "candidates", 1),
        ({"echo": True}, "echo", True),
        ({"echo": True, "max_tokens": 0}, "token_limit", 0),
        ({"echo": True, "max_tokens": 5, "max_completion_tokens": 0}, "token_limit", 0),
        ({"suffix": "x"}, "suffix", "x"),
        ({"logprobs": 0}, "logprobs", 0),
        ({"logprobs": 20}, "logprobs", 20),
        ({"add_special_tokens": False}, "add_special_tokens", False),
    ],
)
def test_accepted(fields: dict[str, Any], name: str, value: object) -> None:
    assert getattr(read(fields), name) == value


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        *request_fields.REFUSED,
        ({"prompt": None}, ErrorCode.MISSING_REQUIRED_PARAMETER, "prompt"),
        ({"prompt": ""}, ErrorCode.VALUE_OUT_OF_RANGE, "prompt"),
        ({"prompt": []}, ErrorCode.VALUE_OUT_OF_RANGE, "prompt"),
        ({"prompt": [[]]}, ErrorCode.VALUE_OUT_OF_RANGE, "prompt[0]"),
        ({"prompt": ["a", ""]}, ErrorCode.VALUE_OUT_OF_RANGE, "prompt[1]"),
        ({"prompt": ["a", 1]}, ErrorCode.INVALID_TYPE, "prompt[1]"),
        ({"prompt": ["a", None]}, ErrorCode.INVALID_TYPE, "prompt[1]"),
        ({"prompt": [[1], "a"]}, ErrorCode.INVALID_TYPE, "prompt[1]"),
        ({"prompt": [1, "a"]}, ErrorCode.INVALID_TYPE, "prompt"),
        ({"prompt": [1, True]}, ErrorCode.INVALID_TYPE, "prompt"),
        ({"prompt": [1.5]}, ErrorCode.INVALID_TYPE, "prompt"),
        ({"prompt": [None]}, ErrorCode.INVALID_TYPE, "prompt"),
        ({"prompt": [-1]}, ErrorCode.VALUE_OUT_OF_RANGE, "prompt"),
        ({"prompt": [[1], [2**31]]}, ErrorCode.VALUE_OUT_OF_RANGE, "prompt[1]"),
        ({"prompt": {"a": 1}}, ErrorCode.INVALID_TYPE, "prompt"),
        ({"prompt": 5}, ErrorCode.INVALID_TYPE, "prompt"),
        ({"prompt": ["a"] * 3, "n": 3}, ErrorCode.VALUE_OUT_OF_RANGE, "prompt"),
        ({"prompt": ["a"] * 3, "best_of": 3}, ErrorCode.VALUE_OUT_OF_RANGE, "prompt"),
        ({"best_of": 9}, ErrorCode.VALUE_OUT_OF_RANGE, "best_of"),
        ({"n": 3, "best_of": 2}, ErrorCode.VALUE_OUT_OF_RANGE, "best_of"),
        ({"best_of": 2, "stream": True}, ErrorCode.VALUE_OUT_OF_RANGE, "best_of"),
        ({"echo": 0}, ErrorCode.INVALID_TYPE, "echo"),
        ({"suffix": 5}, ErrorCode.INVALID_TYPE, "suffix"),
        ({"logprobs": -1}, ErrorCode.VALUE_OUT_OF_RANGE, "logprobs"),
        ({"logprobs": 21}, ErrorCode.VALUE_OUT_OF_RANGE, "logprobs"),
        ({"logprobs": True}, ErrorCode.INVALID_TYPE, "logprobs"),
    ],
)
def test_refused(fields: dict[str, Any], code: ErrorCode, param: str) -> None:
    error = refusal(fields)
    assert (error.code, error.param) == (code, param)
    assert error.message.startswith(param) or "choices" in error.message or "stream_options" in error.message


@pytest.mark.parametrize("name", ["model", "prompt"])
def test_missing_fields_are_named(name: str) -> None:
    with pytest.raises(PipelineError) as caught:
        validate(
            COMPLETION_FORM,
            {key: value for key, value in REQUIRED.items() if key != name},
            max_choices=8,
            is_strict=False,
        )
    assert (caught.value.code, caught.value.param) == (ErrorCode.MISSING_REQUIRED_PARAMETER, name)


def test_all_violated_constraints_are_listed() -> None:
    error = refusal({"temperature": 3, "top_p": 2, "prompt": ""})
    locations = [detail.location for detail in error.details]  # type: ignore[attr-defined]
    assert sorted(locations) == ["body.prompt", "body.temperature", "body.top_p"]


@pytest.mark.parametrize(
    "fields",
    [
        *request_fields.WITHOUT_EFFECT,
        {"best_of": 1},
        {"best_of": 3, "n": 3},
        {"echo": False},
        {"suffix": ""},
        {"logprobs": None},
        {"add_special_tokens": True},
    ],
)
def test_no_op_values_of_unsupported_fields_are_accepted(fields: dict[str, Any]) -> None:
    read(fields, is_strict=True)


@pytest.mark.parametrize(
    ("fields", "param"),
    request_fields.UNSUPPORTED,
)
def test_other_values_of_unsupported_fields_are_rejected_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(fields)
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED_PARAMETER, param)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    request_fields.MALFORMED_GUIDES,
)
def test_malformed_structured_output_is_rejected_by_name(fields: dict[str, Any], param: str, code: ErrorCode) -> None:
    error = refusal(fields)
    assert (error.code, error.param) == (code, param)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_choices_become_a_regex_that_matches_only_them(options: list[str]) -> None:
    ((_, guide),) = read({"guided_choice": options}).guides.items()
    assert guide.source is not None
    for option in options:
        assert re.fullmatch(guide.source, option)
    assert not re.fullmatch(guide.source, f"{max(options, key=len)}x")


def test_unknown_fields_are_counted() -> None:
    options = {"include_usage": True, "x": False, "y": None}
    fields = {**REQUIRED, "colour": 1, "stream": True, "stream_options": options}
    assert validate(COMPLETION_FORM, fields, max_choices=8, is_strict=False)[1] == 3


def test_strict_servers_reject_unknown_fields() -> None:
    error = refusal({"colour": 1}, is_strict=True)
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "colour")


def nested(levels: int) -> bytes:
    """An object whose deepest value is at this level, the object itself being level 1."""
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \n",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        b" \xef\xbb\xbf{}",
        b'{"a": 1} x',
        nested(MAX_DEPTH + 1),
        nested(500),
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: body[:24].decode("latin-1") + f"-{len(body)}",
)
def test_bodies_without_a_json_object(body: bytes) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_object(body)
    assert caught.value.code is ErrorCode.INVALID_JSON


def test_byte_order_mark_is_ignored() -> None:
    assert parse_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_token_limit_has_the_name_that_the_client_used() -> None:
    error = refusal({"min_tokens": 4, "max_completion_tokens": 3})
    assert error.message == "min_tokens must be at most max_completion_tokens, which is 3."


def test_deepest_body_allowed() -> None:
    assert parse_object(nested(MAX_DEPTH)).keys() == {"a"}


def test_last_of_equal_keys_wins() -> None:
    assert parse_object(b'{"a": 1, "a": 2}') == {"a": 2}


def test_depth_is_not_a_matter_of_width() -> None:
    wide = b'{"a": [' + b",".join([b"[1]"] * 10_000) + b"]}"
    assert len(parse_object(wide)["a"]) == 10_000


def test_errors_do_not_contain_the_prompt() -> None:
    secret = "do-not-repeat-me"
    with pytest.raises(PipelineError) as caught:
        validate(COMPLETION_FORM, {"model": "m", "prompt": [secret, ""]}, max_choices=8, is_strict=False)
    shown = caught.value.__context__
    assert secret not in caught.value.message
    assert caught.value.__suppress_context__ or shown is None
    assert sys.exc_info() == (None, None, None)


@pytest.mark.parametrize(
    "fields",
    [
        {f"field-{number}": 1 for number in range(200_000)},
        {"prompt": [[1]] * 300_000},
        {"prompt": [1] * 500_000},
        {"stop": ["x"] * 300_000},
    ],
    ids=["many names", "many prompts", "many ids", "many stops"],
)
def test_no_body_takes_long_to_validate(fields: dict[str, Any]) -> None:
    """Nothing grows with the square of the body. The bound is generous: machines are busy."""
    body = {**REQUIRED, **fields}
    started_s = time.process_time()
    with contextlib.suppress(PipelineError):
        validate(COMPLETION_FORM, body, max_choices=8, is_strict=False)
    assert time.process_time() - started_s < 1
