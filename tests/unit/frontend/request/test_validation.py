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

REQUIRED = {"model": "m", "prompt": "Hi"}
INT64_MAX = 2**63 - 1


def read(fields: dict[str, Any], *, is_strict: bool = False) -> CompletionRequest:
    return validate(COMPLETION_FORM, {**REQUIRED, **fields}, max_choices=8, is_strict=is_strict)[0]


def refusal(fields: dict[str, Any], *, is_strict: bool = False) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        read(fields, is_strict=is_strict)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"prompt": "Hi"}, "prompt", ("Hi",)),
        ({"prompt": ["a", "b"]}, "prompt", ("a", "b")),
        ({"prompt": [1, 2]}, "prompt", ((1, 2),)),
        ({"prompt": [1.0, 2]}, "prompt", ((1, 2),)),
        ({"prompt": [[1], [2, 3]]}, "prompt", ((1,), (2, 3))),
        ({"prompt": " "}, "prompt", (" ",)),
        ({"prompt": "\x00{}\U0001f600"}, "prompt", ("\x00{}\U0001f600",)),
        ({}, "max_tokens", None),
        ({"max_tokens": 1}, "max_tokens", 1),
        ({"max_tokens": 16.0}, "max_tokens", 16),
        ({"max_tokens": None}, "max_tokens", None),
        ({"max_tokens": 5, "max_completion_tokens": 3}, "max_completion_tokens", 3),
        ({"temperature": 0}, "temperature", 0.0),
        ({"temperature": 2}, "temperature", 2.0),
        ({"temperature": None}, "temperature", None),
        ({"top_p": 0}, "top_p", 0.0),
        ({"top_p": 1}, "top_p", 1.0),
        ({"top_k": -1}, "top_k", -1),
        ({"top_k": 0}, "top_k", 0),
        ({"top_k": INT64_MAX}, "top_k", INT64_MAX),
        ({"min_p": 0.5}, "min_p", 0.5),
        ({"seed": -(2**63)}, "seed", -(2**63)),
        ({"seed": INT64_MAX}, "seed", INT64_MAX),
        ({"seed": -1}, "seed", -1),
        ({"seed": None}, "seed", None),
        ({"stop": "x"}, "stop", ("x",)),
        ({"stop": ["x", "y"]}, "stop", ("x", "y")),
        ({"stop": []}, "stop", ()),
        ({"stop": None}, "stop", ()),
        ({"stop": ["x" * 1024] * 16}, "stop", ("x" * 1024,) * 16),
        ({"include_stop_str_in_output": True}, "include_stop_str_in_output", True),
        ({"skip_special_tokens": None}, "skip_special_tokens", True),
        ({"skip_special_tokens": False}, "skip_special_tokens", False),
        ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids", True),
        ({"stream": None}, "stream", False),
        ({"stream": False, "stream_options": None}, "stream_options", None),
        ({"n": None}, "n", 1),
        ({"n": 8}, "n", 8),
        ({"n": 2, "best_of": 4}, "candidates", 4),
        ({"n": 2, "best_of": None}, "candidates", 2),
        ({"best_of": 1, "stream": True}, "candidates", 1),
        ({"echo": True}, "echo", True),
        ({"echo": True, "max_tokens": 0}, "token_limit", 0),
        ({"echo": True, "max_tokens": 5, "max_completion_tokens": 0}, "token_limit", 0),
        ({"suffix": "x"}, "suffix", "x"),
        ({"logprobs": 0}, "logprobs", 0),
        ({"logprobs": 20}, "logprobs", 20),
        ({"frequency_penalty": -2}, "frequency_penalty", -2.0),
        ({"presence_penalty": 2}, "presence_penalty", 2.0),
        ({"repetition_penalty": 0.01}, "repetition_penalty", 0.01),
        ({"logit_bias": {"50256": -100, "7": 0.5}}, "logit_bias", ((50256, -100.0), (7, 0.5))),
        ({"logit_bias": {}}, "logit_bias", ()),
        ({"bad_words": "x"}, "bad_words", ("x",)),
        ({"bad_words": ["x", "y"]}, "bad_words", ("x", "y")),
        ({"min_tokens": 3, "max_tokens": 3}, "min_tokens", 3),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"stop_token_ids": [2, 3.0]}, "stop_token_ids", (2, 3)),
        ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens", -1),
        ({"truncation_side": "left"}, "truncation_side", "left"),
        ({"truncation_side": "right"}, "truncation_side", "right"),
        ({"truncation_side": None}, "truncation_side", None),
        ({"add_special_tokens": False}, "add_special_tokens", False),
        ({"priority": -5}, "priority", -5),
        ({"user": "some user"}, "user", "some user"),
    ],
)
def test_accepted(fields: dict[str, Any], name: str, value: object) -> None:
    assert getattr(read(fields), name) == value


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": None}, ErrorCode.MISSING_REQUIRED_PARAMETER, "model"),
        ({"model": 1}, ErrorCode.INVALID_TYPE, "model"),
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
        ({"max_tokens": 0}, ErrorCode.VALUE_OUT_OF_RANGE, "max_tokens"),
        ({"max_tokens": 2**40}, ErrorCode.VALUE_OUT_OF_RANGE, "max_tokens"),
        ({"max_tokens": 1.5}, ErrorCode.INVALID_TYPE, "max_tokens"),
        ({"max_tokens": "16"}, ErrorCode.INVALID_TYPE, "max_tokens"),
        ({"max_tokens": True}, ErrorCode.INVALID_TYPE, "max_tokens"),
        ({"max_completion_tokens": 0}, ErrorCode.VALUE_OUT_OF_RANGE, "max_completion_tokens"),
        ({"temperature": -0.1}, ErrorCode.VALUE_OUT_OF_RANGE, "temperature"),
        ({"temperature": 2.1}, ErrorCode.VALUE_OUT_OF_RANGE, "temperature"),
        ({"temperature": "1"}, ErrorCode.INVALID_TYPE, "temperature"),
        ({"temperature": False}, ErrorCode.INVALID_TYPE, "temperature"),
        ({"top_p": 1.1}, ErrorCode.VALUE_OUT_OF_RANGE, "top_p"),
        ({"top_p": -1}, ErrorCode.VALUE_OUT_OF_RANGE, "top_p"),
        ({"top_k": -2}, ErrorCode.VALUE_OUT_OF_RANGE, "top_k"),
        ({"top_k": 1.8e19}, ErrorCode.VALUE_OUT_OF_RANGE, "top_k"),
        ({"min_p": 2}, ErrorCode.VALUE_OUT_OF_RANGE, "min_p"),
        ({"seed": 2**63}, ErrorCode.VALUE_OUT_OF_RANGE, "seed"),
        ({"seed": 1.5}, ErrorCode.INVALID_TYPE, "seed"),
        ({"stop": ""}, ErrorCode.VALUE_OUT_OF_RANGE, "stop"),
        ({"stop": ["x", ""]}, ErrorCode.VALUE_OUT_OF_RANGE, "stop[1]"),
        ({"stop": ["x"] * 17}, ErrorCode.VALUE_OUT_OF_RANGE, "stop"),
        ({"stop": "x" * 1025}, ErrorCode.VALUE_OUT_OF_RANGE, "stop"),
        ({"stop": [1]}, ErrorCode.INVALID_TYPE, "stop[0]"),
        ({"stop": {"a": 1}}, ErrorCode.INVALID_TYPE, "stop"),
        ({"include_stop_str_in_output": 1}, ErrorCode.INVALID_TYPE, "include_stop_str_in_output"),
        ({"skip_special_tokens": "true"}, ErrorCode.INVALID_TYPE, "skip_special_tokens"),
        ({"stream": "yes"}, ErrorCode.INVALID_TYPE, "stream"),
        ({"stream_options": {}}, ErrorCode.VALUE_OUT_OF_RANGE, "stream_options"),
        ({"stream": True, "stream_options": []}, ErrorCode.INVALID_TYPE, "stream_options"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            ErrorCode.INVALID_TYPE,
            "stream_options.include_usage",
        ),
        ({"n": 0}, ErrorCode.VALUE_OUT_OF_RANGE, "n"),
        ({"n": 9}, ErrorCode.VALUE_OUT_OF_RANGE, "n"),
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
        ({"frequency_penalty": 2.1}, ErrorCode.VALUE_OUT_OF_RANGE, "frequency_penalty"),
        ({"frequency_penalty": False}, ErrorCode.INVALID_TYPE, "frequency_penalty"),
        ({"presence_penalty": -2.1}, ErrorCode.VALUE_OUT_OF_RANGE, "presence_penalty"),
        ({"repetition_penalty": 0}, ErrorCode.VALUE_OUT_OF_RANGE, "repetition_penalty"),
        ({"logit_bias": [1]}, ErrorCode.INVALID_TYPE, "logit_bias"),
        ({"logit_bias": {"1": 1, "a": 1}}, ErrorCode.INVALID_TYPE, "logit_bias.a"),
        ({"logit_bias": {"-1": 1}}, ErrorCode.INVALID_TYPE, "logit_bias.-1"),
        ({"logit_bias": {"{key}": 1}}, ErrorCode.INVALID_TYPE, "logit_bias.{key}"),
        ({"logit_bias": {"x" * 100: 1}}, ErrorCode.INVALID_TYPE, "logit_bias." + "x" * 64),
        ({"logit_bias": {"1": True}}, ErrorCode.INVALID_TYPE, "logit_bias.1"),
        ({"logit_bias": {"1": None}}, ErrorCode.INVALID_TYPE, "logit_bias.1"),
        ({"logit_bias": {"1": 101}}, ErrorCode.VALUE_OUT_OF_RANGE, "logit_bias.1"),
        ({"logit_bias": {"9999999999": 1}}, ErrorCode.VALUE_OUT_OF_RANGE, "logit_bias.9999999999"),
        ({"logit_bias": {"7": 1, "07": 2}}, ErrorCode.VALUE_OUT_OF_RANGE, "logit_bias"),
        ({"logit_bias": {str(key): 1 for key in range(1025)}}, ErrorCode.VALUE_OUT_OF_RANGE, "logit_bias"),
        ({"bad_words": [""]}, ErrorCode.VALUE_OUT_OF_RANGE, "bad_words[0]"),
        ({"bad_words": ["x"] * 65}, ErrorCode.VALUE_OUT_OF_RANGE, "bad_words"),
        ({"bad_words": "x" * 257}, ErrorCode.VALUE_OUT_OF_RANGE, "bad_words"),
        ({"min_tokens": -1}, ErrorCode.VALUE_OUT_OF_RANGE, "min_tokens"),
        ({"min_tokens": 4, "max_tokens": 3}, ErrorCode.VALUE_OUT_OF_RANGE, "min_tokens"),
        ({"ignore_eos": 1}, ErrorCode.INVALID_TYPE, "ignore_eos"),
        ({"stop_token_ids": 2}, ErrorCode.INVALID_TYPE, "stop_token_ids"),
        ({"stop_token_ids": ["2"]}, ErrorCode.INVALID_TYPE, "stop_token_ids[0]"),
        ({"stop_token_ids": [-1]}, ErrorCode.VALUE_OUT_OF_RANGE, "stop_token_ids"),
        ({"stop_token_ids": [1] * 65}, ErrorCode.VALUE_OUT_OF_RANGE, "stop_token_ids"),
        ({"truncate_prompt_tokens": 0}, ErrorCode.VALUE_OUT_OF_RANGE, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, ErrorCode.VALUE_OUT_OF_RANGE, "truncate_prompt_tokens"),
        ({"truncation_side": "middle"}, ErrorCode.VALUE_OUT_OF_RANGE, "truncation_side"),
        ({"truncation_side": ["left"]}, ErrorCode.VALUE_OUT_OF_RANGE, "truncation_side"),
        ({"priority": 2**31}, ErrorCode.VALUE_OUT_OF_RANGE, "priority"),
        ({"user": 5}, ErrorCode.INVALID_TYPE, "user"),
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
        {"best_of": 1},
        {"best_of": 3, "n": 3},
        {"echo": False},
        {"suffix": ""},
        {"logprobs": None},
        {"frequency_penalty": 0},
        {"frequency_penalty": 0.0},
        {"logit_bias": {}},
        {"user": "some user"},
        {"repetition_penalty": 1.0},
        {"ignore_eos": False},
        {"stop_token_ids": []},
        {"response_format": {"type": "text"}},
        {"guided_json": None},
        {"add_special_tokens": True},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_no_op_values_of_unsupported_fields_are_accepted(fields: dict[str, Any]) -> None:
    read(fields, is_strict=True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": [2]}, "allowed_token_ids"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"use_beam_search": 0}, "use_beam_search"),
        ({"length_penalty": 2}, "length_penalty"),
        ({"length_penalty": True}, "length_penalty"),
        ({"repetition_min_count": 3}, "repetition_min_count"),
        ({"guided_whitespace_pattern": " ?"}, "guided_whitespace_pattern"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"chunk_size": 8}}, "stream_options.chunk_size"),
        ({"stream": True, "stream_options": {"include_usage": True, "x": 0}}, "stream_options.x"),
        ({"stream": True, "stream_options": {"x": {}}}, "stream_options.x"),
    ],
)
def test_other_values_of_unsupported_fields_are_rejected_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(fields)
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED_PARAMETER, param)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": {}}, "response_format", ErrorCode.VALUE_OUT_OF_RANGE),
        ({"response_format": {"type": "yaml"}}, "response_format", ErrorCode.VALUE_OUT_OF_RANGE),
        ({"response_format": "json_object"}, "response_format", ErrorCode.INVALID_TYPE),
        ({"response_format": {"type": "json_schema"}}, "response_format", ErrorCode.INVALID_TYPE),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", ErrorCode.INVALID_TYPE),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", ErrorCode.VALUE_OUT_OF_RANGE),
        ({"structured_outputs": {"yaml": 1}}, "structured_outputs", ErrorCode.VALUE_OUT_OF_RANGE),
        ({"structured_outputs": {"json_object": "yes"}}, "structured_outputs", ErrorCode.INVALID_TYPE),
        ({"guided_json": 1}, "guided_json", ErrorCode.INVALID_TYPE),
        ({"guided_regex": 1}, "guided_regex", ErrorCode.INVALID_TYPE),
        ({"guided_choice": "yes"}, "guided_choice", ErrorCode.INVALID_TYPE),
        ({"guided_choice": ["yes", 1]}, "guided_choice", ErrorCode.INVALID_TYPE),
        ({"guided_choice": []}, "guided_choice", ErrorCode.VALUE_OUT_OF_RANGE),
        ({"guided_choice": ["yes", ""]}, "guided_choice", ErrorCode.VALUE_OUT_OF_RANGE),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex", ErrorCode.VALUE_OUT_OF_RANGE),
    ],
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
