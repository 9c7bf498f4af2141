"""Results of upstream, read piece by piece: each token once, with its logprobs, and one ending."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.executors.tensorrt_llm.engine import Ending
from llm_pipeline.executors.tensorrt_llm_pytorch.outputs import OutputReader
from tests.support.sample_requests import make_request


@dataclass
class Logprob:
    logprob: float
    rank: int = 1


@dataclass
class Output:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class Result:
    """Upstream's result: one object, which changes in place."""

    outputs: list[Output] = field(default_factory=lambda: [Output()])
    finished: bool = False


def entry_of(token_id: int, count: int, *, is_outside: bool) -> dict[int, Logprob]:
    others = {10_000 + place: Logprob(-1.0 - place) for place in range(count if is_outside else count - 1)}
    return {token_id: Logprob(-50.0 if is_outside else -0.5), **others}


@given(
    steps=st.lists(st.lists(st.integers(0, 999), max_size=4), max_size=8),
    count=st.none() | st.integers(0, 5),
    is_outside=st.booleans(),
)
def test_every_token_comes_once_with_its_logprobs(steps: list[list[int]], count: int | None, is_outside: bool) -> None:
    request = replace(make_request(), return_logprobs=count is not None, num_top_logprobs=count or 0)
    reader, result = OutputReader(request), Result()
    ids: list[int] = []
    values: list[float | None] = []
    tops: list[Any] = []
    for step in steps:
        output = result.outputs[0]
        output.token_ids += step
        if count is not None:
            output.logprobs += [entry_of(token, max(count, 1), is_outside=is_outside) for token in step]
        if (response := reader.read(7, result)) is not None:
            assert response.request_id == 7
            assert response.ending is None
            ids += response.token_ids
            values += response.logprobs
            tops += response.top_logprobs
    assert ids == [token for step in steps for token in step]
    if count is None:
        assert values == tops == []
        return
    assert values == [-50.0 if is_outside else -0.5] * len(ids)
    assert len(tops) == (len(ids) if count else 0)
    for tokens, logprobs in tops:
        assert len(tokens) == count
        assert list(logprobs) == sorted(logprobs, reverse=True)


@pytest.mark.parametrize(
    ("reason", "token_ids", "ending"),
    [
        ("stop", [8, 2], Ending.END_ID),
        ("stop", [8], Ending.END_ID),
        ("stop", [], Ending.END_ID),
        ("stop", [8, 3], Ending.STOP_WORDS),
        ("length", [8], Ending.LENGTH),
        ("cancelled", [8], Ending.CANCELLED),
        ("timeout", [], Ending.TIMED_OUT),
        (None, [8], Ending.UNKNOWN),
    ],
)
@pytest.mark.parametrize("is_separate", [True, False], ids=["empty final result", "with the last tokens"])
def test_endings(reason: str | None, token_ids: Sequence[int], ending: Ending, is_separate: bool) -> None:
    reader, result = OutputReader(make_request(stop_token_ids=(2, 3))), Result()
    result.outputs[0].token_ids += token_ids
    if is_separate:
        reader.read(1, result)
    result.finished, result.outputs[0].finish_reason = True, reason
    response = reader.read(1, result)
    assert response is not None
    assert response.ending is ending


def prompt_result(prompt: Sequence[int], first: int, count: int) -> Result:
    result = Result()
    following = [*prompt[1:], first]
    result.outputs[0].prompt_logprobs = [entry_of(token, max(count, 1), is_outside=True) for token in following]
    result.outputs[0].token_ids.append(first)
    result.outputs[0].logprobs.append(entry_of(first, max(count, 1), is_outside=True))
    return result


@given(prompt=st.lists(st.integers(0, 999), min_size=1, max_size=6), count=st.integers(0, 4))
def test_logprobs_of_a_prompt_start_with_its_second_token(prompt: list[int], count: int) -> None:
    request = replace(
        make_request(prompt_ids=tuple(prompt)),
        return_logprobs=True,
        num_top_logprobs=count,
        return_prompt_logprobs=True,
    )
    reader = OutputReader(request)
    result = prompt_result(prompt, first=8, count=count)
    response = reader.read(1, result)
    assert response is not None
    assert response.prompt_logprobs is not None
    assert response.prompt_logprobs.values == (-50.0,) * (len(prompt) - 1)
    assert len(response.prompt_logprobs.tops) == (len(prompt) - 1 if count else 0)
    result.outputs[0].token_ids.append(9)
    result.outputs[0].logprobs.append(entry_of(9, 1, is_outside=False))
    following = reader.read(1, result)
    assert following is not None
    assert following.prompt_logprobs is None


@pytest.mark.parametrize("reason", ["length", "stop"])
def test_token_that_upstream_adds_for_max_tokens_0_is_dropped(reason: str) -> None:
    request = replace(
        make_request(prompt_ids=(1, 2), max_tokens=0, stop_token_ids=(8,)),
        return_logprobs=True,
        return_prompt_logprobs=True,
    )
    result = prompt_result((1, 2), first=8, count=0)
    result.finished, result.outputs[0].finish_reason = True, reason
    response = OutputReader(request).read(1, result)
    assert response is not None
    assert (response.token_ids, response.logprobs, response.ending) == ((), (), Ending.LENGTH)
    assert response.prompt_logprobs is not None
    assert response.prompt_logprobs.values == (-50.0,)
