"""Answers of chat over HTTP: whole and streamed, with a fake engine."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.api.schema_documents import schema_document
from frontend.backends.fake import CHAT_FORMAT, FakeGenerator, ScriptStep, chunks, forever
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason
from llm_pipeline.protocol.model_info import DEFAULT_TEMPLATE
from tests.support.app import MODEL, Running, in_process, real_server
from tests.support.sse_events import events

PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def text_of(sent: list[Any], index: int = 0) -> str:
    choices = [choice for event in sent for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def test_response_body(running: Running) -> None:
    before = int(time.time())
    response = await running.chat(max_tokens=3)
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert body.pop("id").startswith("chatcmpl-")
    assert before <= body.pop("created") <= time.time()
    message = {"role": "assistant", "content": " Paris, the", "refusal": None}
    assert body == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
        "$schema": "http://localhost/openai/schemas/ChatCompletion.json",
    }
    assert response.headers["link"] == '<http://localhost/openai/schemas/ChatCompletion.json>; rel="describedBy"'


async def test_stream_of_events(running: Running) -> None:
    response = await running.chat(max_tokens=2, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    sent = events(response.text)
    assert len({(event["id"], event["created"], event["model"]) for event in sent}) == 1
    assert all(set(event) == {"id", "object", "created", "model", "choices"} for event in sent)
    assert {event["object"] for event in sent} == {"chat.completion.chunk"}
    assert [event["choices"][0] for event in sent] == [
        {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        for delta, reason in [
            ({"role": "assistant", "content": "", "refusal": None}, None),
            ({"content": " Paris"}, None),
            ({"content": ","}, None),
            ({}, "length"),
        ]
    ]


async def test_the_alias_serves_the_same(running: Running) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    for path in ("/openai/v1/chat/completions", "/v1/chat/completions"):
        assert (await running.client.post(path, json=body)).json()["object"] == "chat.completion"


async def test_the_engine_gets_the_rendered_prompt_and_the_fields(running: Running) -> None:
    await running.chat(max_completion_tokens=7, temperature=0.5, seed=3, stop="x", top_k=5, min_p=0.1, logprobs=True)
    (sent,) = running.generator.requests
    assert sent == CompletionParameters(
        request_key=sent.request_key,
        request_id=sent.request_id,
        tenant=sent.tenant,
        prompt_text=PROMPT,
        max_tokens=7,
        token_limit_param="max_completion_tokens",
        prompt_param="messages",
        temperature=0.5,
        seed=3,
        stop=("x",),
        top_k=5,
        min_p=0.1,
        num_logprobs=0,
        add_special_tokens=False,
    )


async def test_text_of_a_user_that_spells_a_token_is_plain(running: Running) -> None:
    await running.chat("<|im_end|>")
    (sent,) = running.generator.requests
    start = len("<|im_start|>user\n")
    assert sent.plain_spans == (start, start + len("<|im_end|>"))


async def test_a_setting_lets_the_text_of_a_user_spell_tokens() -> None:
    async with in_process(chat_parse_special_tokens=True) as app:
        await app.chat("<|im_end|>")
        assert app.generator.requests[0].plain_spans == ()


async def test_without_a_token_limit_an_answer_may_fill_the_context(running: Running) -> None:
    await running.chat()
    assert running.generator.requests[0].max_tokens == running.generator.model_info.context_length


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"add_generation_prompt": False}, "<|im_start|>user\nHi<|im_end|>\n"),
        ({"continue_final_message": True}, "<|im_start|>user\nHi"),
    ],
)
async def test_the_end_of_the_prompt(running: Running, fields: dict[str, Any], prompt: str) -> None:
    await running.chat(**fields)
    assert running.generator.requests[0].prompt_text == prompt


def generator_with(template: str) -> FakeGenerator:
    generator = FakeGenerator()
    chat = replace(CHAT_FORMAT, templates=((DEFAULT_TEMPLATE, template),))
    generator.model_info = replace(generator.model_info, chat=chat)
    return generator


async def test_templates_get_their_variables() -> None:
    template = "{{ tools | tojson }} {{ documents | tojson }} {{ reasoning_effort }} {{ enable_thinking }}"
    tool = {"type": "function", "function": {"name": "f"}}
    async with in_process(generator_with(template)) as app:
        fields: dict[str, Any] = {
            "documents": [{"a": "b"}],
            "reasoning_effort": "low",
            "chat_template_kwargs": {"enable_thinking": 1},
        }
        await app.chat(tools=[tool], **fields)
        await app.chat(tools=[tool], tool_choice="none")
        prompts = [sent.prompt_text for sent in app.generator.requests]
    assert prompts == [f'[{json.dumps(tool)}] [{{"a": "b"}}] low 1', "null null  "]


@pytest.mark.parametrize(("template", "role"), [("", "system"), ("{# developer #}", "developer")])
async def test_a_developer_s_message_is_the_system_s_unless_the_template_knows_it(template: str, role: str) -> None:
    async with in_process(generator_with(template + "{{ messages[0].role }}")) as app:
        body = {"model": MODEL, "messages": [{"role": "developer", "content": "Be short."}]}
        await app.client.post("/v1/chat/completions", json=body)
        assert app.generator.requests[0].prompt_text == role


async def test_a_template_that_refuses_the_messages_is_an_error_of_the_request() -> None:
    async with in_process(generator_with("{{ raise_exception('roles must alternate') }}")) as app:
        response = await app.chat()
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages")
    assert "roles must alternate" in error["message"]


async def test_a_model_without_a_template_refuses_chat_and_lists_it() -> None:
    generator = FakeGenerator()
    generator.model_info = replace(generator.model_info, chat=None)
    async with in_process(generator) as app:
        response = await app.chat()
        (model,) = (await app.client.get("/v1/models")).json()["data"]
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_parameter")
    assert "no chat template" in error["message"]
    assert model["capabilities"]["chat"] is False


async def test_a_model_with_a_template_lists_chat(running: Running) -> None:
    (model,) = (await running.client.get("/v1/models")).json()["data"]
    assert model["capabilities"]["chat"] is True


async def test_errors_about_the_prompt_name_the_messages(running: Running) -> None:
    failure = PipelineError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "The prompt has 99 tokens.", param="prompt")
    running.generator.script = lambda _: [failure]
    for stream in (False, True):
        error = (await running.chat(stream=stream)).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


async def test_several_answers(running: Running) -> None:
    body = (await running.chat(n=2, max_tokens=1)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    sent = events((await running.chat(n=2, max_tokens=2, stream=True)).text)
    for index in range(2):
        own = [event["choices"][0] for event in sent if event["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert text_of(sent, index) == " Paris,"
        assert own[-1]["finish_reason"] == "length"


async def test_usage_of_a_stream(running: Running) -> None:
    options = {"include_usage": True}
    *first, last = events((await running.chat(max_tokens=2, stream=True, stream_options=options)).text)
    assert all(event["usage"] is None for event in first)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    options["continuous_usage_stats"] = True
    sent = events((await running.chat(max_tokens=2, stream=True, stream_options=options)).text)
    assert [event["usage"]["total_tokens"] for event in sent] == [6, 6, 7, 7, 7]


async def test_token_ids_stand_where_vllm_has_them(running: Running) -> None:
    body = (await running.chat(max_tokens=2, return_token_ids=True)).json()
    assert body["prompt_token_ids"] == [1, 2, 3, 4, 5]
    assert body["choices"][0]["token_ids"] == [101, 102]
    sent = events((await running.chat(max_tokens=2, return_token_ids=True, stream=True)).text)
    assert [event.get("prompt_token_ids") for event in sent] == [[1, 2, 3, 4, 5], None, None, None]
    assert [event["choices"][0].get("token_ids") for event in sent] == [None, [101], [102], None]


TOKENS = ["é", " a", "bytes:\\xe2\\x82", "token_id:7"]
LISTS = {
    "tokens": TOKENS,
    "token_logprobs": [-0.25, -1.5, -2.0, None],
    "top_logprobs": [{"é": -0.25, "e": -1.0}, {"b": -0.1, "c": -0.2, " a": -1.5}, {TOKENS[2]: -2.0}, None],
    "text_offset": [0, 1, 3, 3],
}


def with_logprobs(_: CompletionParameters) -> list[ScriptStep]:
    (chunk,) = chunks("é a€", reason=FinishReason.STOP)
    return [replace(chunk, logprobs_json=orjson.dumps(LISTS))]


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_have_chat_s_form(running: Running, stream: bool) -> None:
    running.generator.script = with_logprobs
    response = await running.chat(logprobs=True, top_logprobs=2, stream=stream)
    choices = [event["choices"][0] for event in events(response.text)] if stream else response.json()["choices"]
    (logprobs,) = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    assert logprobs["refusal"] is None
    content = logprobs["content"]
    assert [(entry["token"], entry["logprob"]) for entry in content] == [
        ("é", -0.25),
        (" a", -1.5),
        (TOKENS[2], -2.0),
        ("token_id:7", -9999.0),
    ]
    assert [entry["bytes"] for entry in content] == [[0xC3, 0xA9], [0x20, 0x61], [0xE2, 0x82], None]
    tops = [[top["token"] for top in entry["top_logprobs"]] for entry in content]
    assert tops == [["é", "e"], ["b", "c"], [TOKENS[2]], []]


async def test_logprobs_without_top_logprobs(running: Running) -> None:
    running.generator.script = with_logprobs
    (choice,) = (await running.chat(logprobs=True)).json()["choices"]
    assert all(entry["top_logprobs"] == [] for entry in choice["logprobs"]["content"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=5), min_size=1, max_size=6))
async def test_a_stream_adds_up_to_the_whole_answer(texts: list[str]) -> None:
    async with in_process(FakeGenerator(lambda _: chunks(*texts))) as app:
        whole = (await app.chat()).json()["choices"][0]["message"]["content"]
        streamed = await app.chat(stream=True)
    assert text_of(events(streamed.text)) == whole == "".join(texts)
    assert len(streamed.text.splitlines()) == 2 * len(events(streamed.text)) + 2  # one line for each event


@pytest.mark.parametrize("fields", [{}, {"return_token_ids": True}, {"logprobs": True, "top_logprobs": 2}], ids=str)
async def test_answers_match_the_schema_that_they_name(running: Running, fields: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    if "logprobs" in fields:
        running.generator.script = with_logprobs
    jsonschema.validate((await running.chat(**fields)).json(), schema_document("ChatCompletion", "http://x"))


async def test_requests_are_counted_by_operation(running: Running) -> None:
    await running.chat()
    await running.complete()
    await running.chat(temperature=9)
    for operation, model, count in (("chat", MODEL, 1), ("completions", MODEL, 1), ("chat", "none", 1)):
        line = f'completions_operation_requests_total{{model="{model}",operation="{operation}"}}'
        assert await running.metric(line) == count


async def test_a_deadline_ends_a_chat_as_it_ends_a_completion() -> None:
    async with real_server(FakeGenerator(forever())) as app:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        headers = {"x-request-timeout-s": "0.2"}
        response = await app.client.post("/v1/chat/completions", json=body, headers=headers)
        await app.generator.until_cancelled()
    assert response.status_code == 200
    assert '"code":"deadline_exceeded"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")
