"""Logprobs, best_of and model info in completions and in the models list."""

from __future__ import annotations

import json
from dataclasses import replace

import orjson
import pytest

from frontend.backends.fake import FakeGenerator, ScriptStep, chunks
from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.protocol.model_info import ModelInfo
from tests.support.app import MODEL, Running
from tests.support.sse_events import events

PIECE = '{"tokens":[" é"],"token_logprobs":[-0.25],"top_logprobs":[{" é":-0.25}],"text_offset":[0]}'


def one_piece(parameters: CompletionParameters) -> list[ScriptStep]:
    (chunk,) = chunks(" é")
    return [replace(chunk, logprobs_json=PIECE.encode())]


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_returned_unchanged(running: Running, stream: bool) -> None:
    running.generator.script = one_piece
    response = await running.complete(logprobs=1, stream=stream)
    (choice,) = events(response.text)[0]["choices"] if stream else response.json()["choices"]
    assert choice["logprobs"] == json.loads(PIECE)
    assert PIECE in response.text
    assert (choice["text"], choice["finish_reason"]) == (" é", "length")


async def test_sampling_fields_reach_the_engine(running: Running) -> None:
    fields = {
        "suffix": "end",
        "logprobs": 3,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": 1},
        "bad_words": ["x"],
        "min_tokens": 1,
        "ignore_eos": True,
        "stop_token_ids": [3],
        "truncate_prompt_tokens": 9,
        "add_special_tokens": False,
        "priority": -1,
        "user": "alice",
    }
    assert (await running.complete(**fields)).status_code == 200
    (sent,) = running.generator.requests
    assert sent.suffix == "end"
    assert sent.num_logprobs == 3
    assert (sent.frequency_penalty, sent.presence_penalty, sent.repetition_penalty) == (0.5, -0.5, 1.1)
    assert (sent.logit_bias, sent.bad_words) == (((5, 1.0),), ("x",))
    assert (sent.min_tokens, sent.ignore_eos, sent.stop_token_ids) == (1, True, (3,))
    assert (sent.truncate_prompt_tokens, sent.add_special_tokens, sent.priority) == (9, False, -1)
    assert not sent.return_logprob_values


async def test_no_op_values_equal_omitted_fields(running: Running) -> None:
    await running.complete(echo=False, logprobs=None, suffix="", user="", best_of=1)
    (sent,) = running.generator.requests
    neutral = CompletionParameters(
        request_key=sent.request_key, request_id=sent.request_id, tenant=sent.tenant, prompt_text="Hi"
    )
    assert sent == neutral


# --- best_of ---------------------------------------------------------------------------------------------------------


async def test_best_of_returns_the_highest_logprob_per_token_first(running: Running) -> None:
    """Per token, as the sum favours short texts."""
    sums = iter([(-4.0, 2), (-3.0, 1), (-5.0, 5), (-1.0, 1), (-9.0, 9), (-0.5, 1)])

    def script(parameters: CompletionParameters) -> list[ScriptStep]:
        assert parameters.return_logprob_values
        total, count = next(sums)
        (chunk,) = chunks(f"{total}")
        return [replace(chunk, completion_tokens=count, cumulative_logprob=total)]

    running.generator.script = script
    response = (await running.complete(prompt=["a", "b"], n=2, best_of=3)).json()
    assert [(choice["index"], choice["text"]) for choice in response["choices"]] == [
        (0, "-5.0"),
        (1, "-4.0"),
        (2, "-0.5"),
        (3, "-1.0"),
    ]
    assert response["usage"] == {"prompt_tokens": 10, "completion_tokens": 19, "total_tokens": 29}


async def test_best_of_equal_to_n_needs_no_logprobs(running: Running) -> None:
    response = (await running.complete(n=2, best_of=2)).json()
    assert len(response["choices"]) == 2
    assert not any(sent.return_logprob_values for sent in running.generator.requests)


async def test_best_of_is_unsupported_without_logprobs(running: Running) -> None:
    running.generator.model_info = replace(running.generator.model_info, capabilities=CAPABILITIES["scripted"])
    response = await running.complete(best_of=2)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "best_of")
    assert running.generator.requests == []


async def test_drain_that_starts_during_that_check_rejects_the_request(running: Running) -> None:
    services = running.dependencies

    async def describe() -> ModelInfo:
        services.admission.is_draining = True
        return FakeGenerator().model_info

    running.generator.get_model_info = describe  # type: ignore[method-assign]
    response = await running.complete(best_of=2)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
    assert running.generator.requests == []


# --- Model info ---------------------------------------------------------------------------------------------------


async def test_models_show_limits_and_capabilities(running: Running) -> None:
    listed = (await running.client.get("/v1/models")).json()["data"][0]
    described = (await running.client.get(f"/v1/models/{MODEL}")).json()
    assert listed.items() <= described.items()
    assert described["max_model_len"] == 64
    assert described["capabilities"].items() >= orjson.loads(orjson.dumps(CAPABILITIES["cpu"].as_document())).items()


async def test_models_are_listed_while_the_engine_is_down(running: Running) -> None:
    running.generator.is_up = False
    listed = (await running.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == [MODEL]
    assert "logprobs" not in listed[0]["capabilities"]


async def test_model_info_is_kept_while_the_engine_is_down(running: Running) -> None:
    before = (await running.client.get("/v1/models")).json()
    running.generator.is_up = False
    assert (await running.client.get("/v1/models")).json() == before
