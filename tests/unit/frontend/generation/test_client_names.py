"""Errors of the stages name fields as the client did."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from frontend.backends.fake import FakeGenerator
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GUIDE_PARAM
from tests.support.app import MODEL, in_process
from tests.support.keys import bearer, digest_of, write_keys

TOO_MANY = "max_tokens is 8193. It must be at most this model's context of 8192 tokens."
GUIDES = {
    "response_format": {"type": "json_object"},
    "structured_outputs": {"regex": "a"},
    "guided_json": {},
    "guided_regex": "a",
    "guided_choice": ["a"],
    "guided_grammar": 'root ::= "a"',
}


def failing(error: PipelineError) -> FakeGenerator:
    return FakeGenerator(lambda _: [error])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_token_limit_is_named_as_it_was_sent(name: str, stream: bool) -> None:
    error = PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, TOO_MANY, param="max_tokens")
    async with in_process(failing(error)) as app:
        body = (await app.complete(stream=stream, **{name: 8193})).json()
    assert body["error"]["param"] == name
    assert body["error"]["message"] == body["detail"] == TOO_MANY.replace("max_tokens", name)
    assert [detail["location"] for detail in body["errors"]] == [f"body.{name}"]


async def test_newer_name_wins_if_both_were_sent() -> None:
    error = PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, TOO_MANY, param="max_tokens")
    async with in_process(failing(error)) as app:
        body = (await app.complete(max_tokens=5, max_completion_tokens=8193)).json()
    assert body["error"]["param"] == "max_completion_tokens"


async def test_token_limit_is_named_in_errors_about_other_fields() -> None:
    message = "min_tokens is 5. It must be at most max_tokens, which is 3. max_tokens_in_flight stays."
    error = PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, message, param="min_tokens")
    async with in_process(failing(error)) as app:
        body = (await app.complete(max_completion_tokens=3)).json()
    assert body["error"]["param"] == "min_tokens"
    assert body["error"]["message"].startswith("min_tokens is 5. It must be at most max_completion_tokens, which is 3.")
    assert body["error"]["message"].endswith("max_tokens_in_flight stays.")


@pytest.mark.parametrize("param", [GUIDE_PARAM, "guide"])
@pytest.mark.parametrize("name", GUIDES)
async def test_guide_is_named_by_the_field_that_requested_it(name: str, param: str) -> None:
    error = PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, "The guide is not supported.", param=param)
    async with in_process(failing(error)) as app:
        body = (await app.complete(**{name: GUIDES[name]})).json()
    assert body["error"]["param"] == name


async def test_limit_of_a_key_names_the_token_limit_as_it_was_sent(tmp_path: Path) -> None:
    entry = {"name": "a", "sha256": digest_of("sk-a"), "max_tokens_in_flight": 10}
    async with in_process(api_keys_file=write_keys(tmp_path / "keys.json", entry)) as app:
        body = {"model": MODEL, "prompt": "Hi", "max_completion_tokens": 50}
        error = (await app.client.post("/v1/completions", json=body, headers=bearer("sk-a"))).json()["error"]
    assert error["param"] == "max_completion_tokens"
    assert "Lower max_completion_tokens" in error["message"]


async def test_late_completion_names_the_token_limit_as_it_was_sent() -> None:
    async with in_process(FakeGenerator(lambda _: [asyncio.Event()]), request_timeout_s=0.05) as app:
        error = (await app.complete(max_completion_tokens=50)).json()["error"]
    assert "Lower max_completion_tokens" in error["message"]
