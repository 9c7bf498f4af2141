"""Completions as one JSON object."""

from __future__ import annotations

import asyncio
import time

import pytest

from frontend.backends.fake import PROMPT_TOKENS, FakeGenerator, ScriptStep, chunks, forever
from frontend.request.to_parameters import choice_seed
from llm_pipeline.protocol.engine_metrics import EngineReport
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason
from tests.support.app import MODEL, Running, in_process


async def test_response_body(running: Running) -> None:
    before = int(time.time())
    response = await running.complete(max_tokens=3)
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert body.pop("id").startswith("cmpl-")
    assert before <= body.pop("created") <= time.time()
    assert body == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"index": 0, "text": " Paris, the", "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
        "$schema": "http://localhost/openai/schemas/Completion.json",
    }
    assert response.headers["link"] == '<http://localhost/openai/schemas/Completion.json>; rel="describedBy"'


async def test_completion_ids_are_unique(running: Running) -> None:
    ids = [(await running.complete()).json()["id"] for _ in range(3)]
    assert len(set(ids)) == 3


async def test_fields_reach_the_generator() -> None:
    async with in_process() as app:
        await app.client.post(
            "/v1/completions",
            headers={"x-request-id": "mine"},
            json={
                "model": MODEL,
                "prompt": "Hi",
                "max_tokens": 9,
                "max_completion_tokens": 7,
                "temperature": 0.5,
                "top_p": 0,
                "top_k": -1,
                "min_p": 0.1,
                "seed": -1,
                "stop": "x",
                "include_stop_str_in_output": True,
                "skip_special_tokens": False,
            },
        )
        sent = app.generator.requests[0]
    assert sent == CompletionParameters(
        request_key=sent.request_key,
        request_id="mine",
        tenant=sent.tenant,
        prompt_text="Hi",
        max_tokens=7,
        token_limit_param="max_completion_tokens",
        temperature=0.5,
        top_p=0.0,
        top_k=-1,
        min_p=0.1,
        seed=-1,
        stop=("x",),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
    )


async def test_null_fields_count_as_unset(running: Running) -> None:
    await running.complete(seed=None, temperature=None, max_tokens=None)
    sent = running.generator.requests[0]
    assert (sent.seed, sent.temperature, sent.max_tokens, sent.stop) == (None, None, None, ())


async def test_choices_are_ordered_by_prompt() -> None:
    def by_prompt(parameters: CompletionParameters) -> list[ScriptStep]:
        return list(chunks(str(parameters.prompt_text or parameters.token_ids)))

    async with in_process(FakeGenerator(by_prompt)) as app:
        body = (await app.complete(prompt=["a", "b"], n=2, seed=7)).json()
        seeds = [sent.seed for sent in app.generator.requests]
        keys = {sent.request_key for sent in app.generator.requests}
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    assert body["usage"] == {"prompt_tokens": 2 * PROMPT_TOKENS, "completion_tokens": 4, "total_tokens": 14}
    assert seeds == [choice_seed(7, index) for index in range(4)]
    assert len(keys) == 4


def test_choice_seeds_never_change() -> None:
    """Clients get the same text for the same seed from every version."""
    assert [choice_seed(1234, index) for index in range(3)] == [1234, -2306404173222118480, 4916647437660608691]
    assert choice_seed(-(2**63), 0) == -(2**63)
    assert len({choice_seed(seed, index) for seed in (0, 1, -1) for index in range(100)}) == 300
    assert all(-(2**63) <= choice_seed(5, index) < 2**63 for index in range(100))


async def test_return_tokens_as_token_ids(running: Running) -> None:
    body = (await running.complete(max_tokens=2, return_tokens_as_token_ids=True)).json()
    choice = body["choices"][0]
    assert choice["text"] == "token_id:101token_id:102"
    assert choice["token_ids"] == [101, 102]


async def test_return_token_ids(running: Running) -> None:
    choice = (await running.complete(max_tokens=2, return_token_ids=True)).json()["choices"][0]
    assert (choice["text"], choice["token_ids"]) == (" Paris,", [101, 102])
    assert choice["prompt_token_ids"] == [1, 2, 3, 4, 5]


async def test_tokens_as_token_ids_echo_the_ids_of_the_prompt(running: Running) -> None:
    fields = {"return_tokens_as_token_ids": True, "echo": True, "max_tokens": 1}
    choice = (await running.complete(**fields)).json()["choices"][0]
    assert choice["text"] == "".join(f"token_id:{number}" for number in (1, 2, 3, 4, 5, 101))
    assert choice["token_ids"] == [1, 2, 3, 4, 5, 101]
    assert "prompt_token_ids" not in choice
    both = (await running.complete(**fields, return_token_ids=True)).json()["choices"][0]
    assert (both["text"], both["token_ids"]) == (choice["text"], [101])
    assert both["prompt_token_ids"] == [1, 2, 3, 4, 5]


async def test_finish_reason_stop(running: Running) -> None:
    running.generator.script = lambda _: chunks("a", "", reason=FinishReason.STOP)
    assert (await running.complete()).json()["choices"][0]["finish_reason"] == "stop"


async def test_text_is_returned_unchanged(running: Running) -> None:
    text = ' "quoted"\n\u2028\x00\x7f \U0001f600é\\'
    running.generator.script = lambda _: chunks(text)
    assert (await running.complete()).json()["choices"][0]["text"] == text


async def test_token_id_prompts(running: Running) -> None:
    await running.complete(prompt=[[1, 2], [3]])
    assert [sent.token_ids for sent in running.generator.requests] == [(1, 2), (3,)]


async def test_error_of_one_prompt_names_it_and_cancels_the_others() -> None:
    def script(parameters: CompletionParameters) -> list[ScriptStep]:
        if parameters.prompt_text == "long":
            return [PipelineError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "9 of 8 tokens", param="prompt")]
        return [asyncio.Event()]

    async with in_process(FakeGenerator(script)) as app:
        response = await app.complete(prompt=["short", "long"])
        await app.generator.until_cancelled()
        assert app.generator.cancelled == [app.generator.requests[0].request_key]
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt[1]"
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_timeout_is_a_504_and_cancels_the_request() -> None:
    async with in_process(FakeGenerator(forever())) as app:
        response = await app.client.post(
            "/v1/completions", json={"model": MODEL, "prompt": "Hi"}, headers={"x-request-timeout-s": "0.1"}
        )
        await app.generator.until_cancelled()
        assert await app.metric('completions_cancelled_total{model="tiny",reason="deadline"}') == 1
    assert response.status_code == 504
    assert response.json()["error"] == {
        **response.json()["error"],
        "type": "timeout_error",
        "code": "deadline_exceeded",
    }


@pytest.mark.parametrize("sent", ["soon", "0", "-1", "nan"])
async def test_invalid_timeout_header_is_rejected(running: Running, sent: str) -> None:
    response = await running.client.post(
        "/v1/completions", json={"model": MODEL, "prompt": "Hi"}, headers={"x-request-timeout-s": sent}
    )
    assert response.status_code == 400


async def test_stream_without_finish_reason_is_an_error(running: Running) -> None:
    running.generator.script = lambda _: chunks("a", "b")[:1]
    response = await running.complete(stream=True)
    assert '"code":"service_unavailable"' in response.text


async def test_unexpected_generator_exception_is_a_500_without_details(running: Running) -> None:
    running.generator.script = lambda _: [RuntimeError("secret path /etc/x")]
    response = await running.complete()
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-should-retry"] == "false"


async def test_response_has_the_requested_alias() -> None:
    async with in_process(model_aliases="small, gpt-small") as app:
        body = (await app.complete(model="gpt-small")).json()
    assert body["model"] == "gpt-small"


async def test_long_prompts(running: Running) -> None:
    await running.complete(prompt=[7] * 100_000)
    assert running.generator.requests[0].token_ids == (7,) * 100_000


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_responses_and_chunks_have_the_fingerprint_of_the_engine(is_streamed: bool) -> None:
    async with in_process() as app:
        app.dependencies.metrics.engines.record(MODEL, "a", EngineReport({}, info={"engine_id": "0123456789ab"}))
        response = await app.complete(stream=is_streamed)
    assert response.text.count('"system_fingerprint":"fp_0123456789ab"') >= 1
