"""Penalties, logit bias, stop token ids and prompt truncation on a running stack."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.stack import MODEL, RunningStack

pytestmark = pytest.mark.triton

PROMPT = "The capital of France is"
PARIS = 7042


def ids_of(stack: RunningStack, **body: Any) -> list[int]:
    fields = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "return_tokens_as_token_ids": True, **body}
    answer = stack.complete(**fields)
    assert answer.status_code == 200, answer.text
    ids: list[int] = answer.json()["choices"][0]["token_ids"]
    return ids


def test_a_frequency_penalty_ends_a_repetition(cpu_stack: RunningStack) -> None:
    loop = "one two one two one two one two one two"
    plain = ids_of(cpu_stack, prompt=loop, max_tokens=24)
    damped = ids_of(cpu_stack, prompt=loop, max_tokens=24, frequency_penalty=2, presence_penalty=2)
    assert len(set(damped)) > len(set(plain))


def test_a_repetition_penalty_counts_the_prompt(cpu_stack: RunningStack) -> None:
    loop = "one two one two one two one two one two"
    (plain,) = ids_of(cpu_stack, prompt=loop, max_tokens=1)
    (other,) = ids_of(cpu_stack, prompt=loop, max_tokens=1, repetition_penalty=10)
    in_prompt = cpu_stack.complete(prompt=loop, max_tokens=1, return_token_ids=True).json()["choices"][0][
        "prompt_token_ids"
    ]
    assert plain in in_prompt
    assert other not in in_prompt


def test_logit_bias_bans_and_forces(cpu_stack: RunningStack) -> None:
    assert ids_of(cpu_stack)[0] == PARIS
    assert PARIS not in ids_of(cpu_stack, logit_bias={str(PARIS): -100})
    assert ids_of(cpu_stack, logit_bias={"260": 100}, max_tokens=3) == [260, 260, 260]


def test_bad_words_do_not_appear(cpu_stack: RunningStack) -> None:
    text = cpu_stack.complete(prompt=PROMPT, temperature=0, max_tokens=20, bad_words=["Paris"]).json()
    assert "Paris" not in text["choices"][0]["text"]


def test_a_stop_token_id_ends_the_text_and_is_included_on_request(cpu_stack: RunningStack) -> None:
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8, "stop_token_ids": [30]}
    plain, shown = (
        cpu_stack.complete(**body, include_stop_str_in_output=flag).json()["choices"][0] for flag in (False, True)
    )
    assert (plain["text"], plain["finish_reason"]) == (" Paris", "stop")
    assert shown["text"] == " Paris."
    assert ids_of(cpu_stack, stop_token_ids=[30]) == [PARIS, 30]
    assert len(ids_of(cpu_stack, stop_token_ids=[30], min_tokens=5)) >= 5


def test_ignore_eos_generates_up_to_max_tokens(cpu_stack: RunningStack) -> None:
    body = {"logit_bias": {"2": 100}, "max_tokens": 5}
    assert ids_of(cpu_stack, **body) == [2]
    assert ids_of(cpu_stack, **body, ignore_eos=True) == [2] * 5
    assert ids_of(cpu_stack, **body, min_tokens=3)[-1] == 2
    assert 2 not in ids_of(cpu_stack, **body, min_tokens=3)[:3]


def test_truncate_prompt_tokens_keeps_the_last_ones(cpu_stack: RunningStack) -> None:
    body = {"prompt": [504, 3575, 282, 4649, 314], "max_tokens": 0, "echo": True}
    answer = cpu_stack.complete(**body, truncate_prompt_tokens=2).json()
    assert (answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]) == (" France is", 2)


def test_truncation_side_right_keeps_the_first_ones(cpu_stack: RunningStack) -> None:
    body = {"prompt": [504, 3575, 282, 4649, 314], "max_tokens": 1, "return_token_ids": True, "temperature": 0}
    for echo in (False, True):
        whole = cpu_stack.complete(**body, truncate_prompt_tokens=2, truncation_side="right", echo=echo).json()
        assert whole["choices"][0]["prompt_token_ids"] == [504, 3575]
        assert len(whole["choices"][0]["token_ids"]) == whole["usage"]["completion_tokens"] == 1
    assert cpu_stack.complete(**body, truncation_side="both").json()["error"]["param"] == "truncation_side"


def test_ids_of_a_text_prompt_are_those_that_complete_it_alike(cpu_stack: RunningStack) -> None:
    body = {"max_tokens": 4, "temperature": 0, "return_token_ids": True}
    first = cpu_stack.complete(**body, prompt="The capital of France is").json()["choices"][0]
    again = cpu_stack.complete(**body, prompt=first["prompt_token_ids"]).json()["choices"][0]
    assert (again["text"], again["token_ids"]) == (first["text"], first["token_ids"])
    assert again["prompt_token_ids"] == first["prompt_token_ids"]


@pytest.mark.parametrize("stack", ["cpu_stack", "scripted_stack"])
def test_the_models_list_has_the_capabilities_of_the_engine(stack: str, request: pytest.FixtureRequest) -> None:
    running: RunningStack = request.getfixturevalue(stack)
    with running.client() as client:
        (listed,) = client.get("/openai/v1/models").json()["data"]
        described = client.get(f"/openai/v1/models/{MODEL}").json()
    assert listed.items() <= described.items()
    can = described["capabilities"]
    assert described["max_model_len"] == 8192
    for name, value in {"logit_bias": {"5": 1}, "logprobs": 1}.items():
        status = running.complete(prompt=PROMPT, max_tokens=2, **{name: value}).status_code
        assert status == (200 if can[name] else 400), name


def test_the_scripted_executor_rejects_best_of_by_name(scripted_stack: RunningStack) -> None:
    error = scripted_stack.complete(prompt=PROMPT, n=1, best_of=2).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "best_of")
