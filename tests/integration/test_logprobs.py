"""Logprobs, echo and scoring on the real stack, against the same model computed in plain numpy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from build_engine.cpu.default_model import find_model
from tests.support.llama_reference import LlamaReference
from tests.support.stack import MODEL, RunningStack

pytestmark = pytest.mark.triton

TEXT = "The capital of France is Paris. 你好 world,\n\n 🐍 and the rest of it."
TOLERANCE = 3e-3


@pytest.fixture(scope="module")
def reference() -> LlamaReference:
    return LlamaReference(find_model(None).path)


def choice_of(stack: RunningStack, **body: Any) -> dict[str, Any]:
    answer = stack.complete(**body)
    assert answer.status_code == 200, answer.text
    choices: list[dict[str, Any]] = answer.json()["choices"]
    assert len(choices) == 1
    return choices[0]


def streamed(stack: RunningStack, **body: Any) -> list[dict[str, Any]]:
    """The choices of all events."""
    with stack.client() as client:
        text = client.post("/openai/v1/completions", json={"model": MODEL, "stream": True, **body}).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line.startswith("data: {")]
    return [choice for event in events for choice in event["choices"]]


def test_logprobs_of_prompt_and_completion_match_the_weights(
    cpu_stack: RunningStack, reference: LlamaReference
) -> None:
    choice = choice_of(
        cpu_stack,
        prompt=TEXT,
        max_tokens=8,
        temperature=0.7,
        seed=3,
        frequency_penalty=1,
        logprobs=5,
        echo=True,
        return_tokens_as_token_ids=True,
    )
    ids, found = choice["token_ids"], choice["logprobs"]
    assert found["tokens"] == [f"token_id:{token_id}" for token_id in ids]
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    expected = reference.logprobs(ids)
    for position in range(1, len(ids)):
        row = expected[position - 1]
        assert found["token_logprobs"][position] == pytest.approx(row[ids[position]], abs=TOLERANCE)
        top = found["top_logprobs"][position]
        assert 5 <= len(top) <= 6
        for name, value in top.items():
            assert value == pytest.approx(row[int(name.removeprefix("token_id:"))], abs=TOLERANCE)
        likeliest = sorted(row.tolist(), reverse=True)[:5]
        assert sorted(top.values(), reverse=True)[:5] == pytest.approx(likeliest, abs=TOLERANCE)


def test_a_batch_is_scored_as_lm_evaluation_harness_requests_it(
    cpu_stack: RunningStack, reference: LlamaReference
) -> None:
    """As its local-completions does: lists of ids, one token too many, sums from the end of each context."""
    texts = [("The capital of France is", " Paris"), ("Once upon a", " time there was"), ("1, 2, 3,", " purple")]
    with_ids = [
        [choice_of(cpu_stack, prompt=part, max_tokens=0, echo=True, return_tokens_as_token_ids=True) for part in pair]
        for pair in texts
    ]
    contexts = [pair[0]["token_ids"] for pair in with_ids]
    prompts = [pair[0]["token_ids"] + pair[1]["token_ids"] for pair in with_ids]
    body = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    choices = cpu_stack.complete(**body).json()["choices"]
    for choice, context, prompt in zip(choices, contexts, prompts, strict=True):
        values: list[float] = choice["logprobs"]["token_logprobs"][len(context) : -1]
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        rows = reference.logprobs(prompt)[len(context) - 1 : -1]
        expected = [row[token_id] for row, token_id in zip(rows, prompt[len(context) :], strict=True)]
        assert values == pytest.approx(expected, abs=TOLERANCE)
        is_greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
        assert is_greedy == all(row.argmax() == token for row, token in zip(rows, prompt[len(context) :], strict=True))
    assert [choice["index"] for choice in choices] == [0, 1, 2]


def test_a_long_prompt_is_scored_in_pieces_like_a_short_one(cpu_stack: RunningStack) -> None:
    """300 tokens are more than a step takes: the first ones must not depend on what comes after."""
    words = [504, 3575, 282, 4649] * 75
    whole = choice_of(cpu_stack, prompt=words, max_tokens=0, echo=True, logprobs=0)["logprobs"]["token_logprobs"]
    start = choice_of(cpu_stack, prompt=words[:70], max_tokens=0, echo=True, logprobs=0)["logprobs"]["token_logprobs"]
    assert len(whole) == 300
    assert whole[1:70] == pytest.approx(start[1:], abs=1e-3)


@pytest.mark.parametrize(
    "more",
    [
        {"stop": ["x", "."], "max_tokens": 40},
        {"n": 2, "temperature": 1, "seed": 5},
        {"return_tokens_as_token_ids": True},
    ],
    ids=["stop", "n", "ids"],
)
def test_a_stream_adds_up_to_the_whole_answer(cpu_stack: RunningStack, more: dict[str, Any]) -> None:
    body = {"prompt": TEXT, "max_tokens": 12, "temperature": 0, "logprobs": 2, "echo": True, **more}
    pieces = streamed(cpu_stack, **body)
    for choice in cpu_stack.complete(**body).json()["choices"]:
        own = [piece for piece in pieces if piece["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            together = [item for piece in own for item in piece["logprobs"][name]]
            if name == "top_logprobs":  # load may change the last digits
                assert [list(top or ()) for top in together] == [list(top or ()) for top in choice["logprobs"][name]]
            elif name == "token_logprobs":
                assert together[0] is choice["logprobs"][name][0] is None
                assert together[1:] == pytest.approx(choice["logprobs"][name][1:], abs=1e-3)
            else:
                assert together == choice["logprobs"][name]


def test_tokens_add_up_to_the_text(cpu_stack: RunningStack) -> None:
    choice = choice_of(cpu_stack, prompt="Once upon a time", max_tokens=20, temperature=0, logprobs=1, ignore_eos=True)
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"]
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)


def test_best_of_returns_the_likeliest_of_the_choices_that_n_generates(cpu_stack: RunningStack) -> None:
    body = {"prompt": ["Once upon a time", "The sea"], "max_tokens": 6, "seed": 11}
    every = cpu_stack.complete(**body, n=4, logprobs=0).json()
    best = cpu_stack.complete(**body, n=2, best_of=4).json()

    def mean(choice: dict[str, Any]) -> float:
        values: list[float] = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    expected: list[str] = []
    for start in (0, 4):
        ranked = sorted(every["choices"][start : start + 4], key=mean, reverse=True)
        expected += [choice["text"] for choice in ranked[:2]]
    assert [choice["text"] for choice in best["choices"]] == expected
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"] == every["usage"]  # all generated tokens count
