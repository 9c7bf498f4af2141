"""The CPU engine without OpenVINO: what a request gets must not depend on who else is served, or on the KV cache."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.executors.cpu.engine.ipc import EngineStep
from llm_pipeline.protocol.messages import GenerationRequest, SamplingParams
from llm_pipeline.runtime.guided_decoding import GuideError
from tests.support.hash_model import CAPACITY, VOCABULARY, HashModel
from tests.support.sample_requests import make_request


def make_engine(model: HashModel | None = None, *, max_batched_tokens: int = 16, max_active: int = 8) -> EngineCore:
    return EngineCore(model or HashModel(), max_batched_tokens=max_batched_tokens, max_active=max_active)


def finish(engine: EngineCore) -> dict[str, list[EngineStep]]:
    """Step until all is done; the steps of each request."""
    steps = defaultdict(list)
    while engine.has_work:
        for step in engine.step():
            steps[step.key].append(step)
    return steps


def tokens(steps: list[EngineStep]) -> list[int | None]:
    return [step.token_id for step in steps]


def alone(request: GenerationRequest) -> list[EngineStep]:
    engine = make_engine()
    engine.add(request)
    return finish(engine)[request.key]


def crowd(count: int, dice: random.Random) -> list[GenerationRequest]:
    return [
        make_request(
            f"request {number}",
            prompt_ids=tuple(dice.randrange(VOCABULARY) for _ in range(dice.randint(1, 40))),
            max_tokens=dice.randint(1, 40),
            sampling=SamplingParams(is_greedy=number % 2 == 0, temperature=1.5, top_k=20, seed=dice.getrandbits(64)),
            stop_token_ids=(0, 1),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("capacity", "block_size", "max_batched_tokens", "max_active"),
    [(CAPACITY * 10, 4, 256, 8), (CAPACITY, 4, 16, 8), (CAPACITY, 1, 3, 3), (CAPACITY, 32, 7, 64), (CAPACITY, 4, 1, 1)],
    ids=["roomy", "cramped", "tiny budget", "large blocks", "one by one"],
)
def test_a_request_gets_the_same_tokens_alone_and_in_any_crowd(
    seed: int, capacity: int, block_size: int, max_batched_tokens: int, max_active: int
) -> None:
    dice = random.Random(seed)
    requests = crowd(20, dice)
    engine = make_engine(
        HashModel(block_size=block_size, capacity=capacity),
        max_batched_tokens=max_batched_tokens,
        max_active=max_active,
    )
    steps: dict[str, list[EngineStep]] = defaultdict(list)
    late = list(requests)
    while late or engine.has_work:
        while late and dice.random() < 0.5:
            engine.add(late.pop())
        if engine.has_work:
            for step in engine.step():
                steps[step.key].append(step)
    for request in requests:
        assert steps[request.key] == alone(request)


@pytest.mark.parametrize("capacity", [CAPACITY, CAPACITY * 10], ids=["cramped", "roomy"])
def test_requests_that_begin_alike_get_the_tokens_that_they_get_alone(capacity: int) -> None:
    dice = random.Random(5)
    beginnings = [tuple(dice.randrange(VOCABULARY) for _ in range(24)) for _ in range(3)]
    requests = [
        replace(request, prompt_ids=beginnings[number % 3][: dice.randint(1, 24)] + request.prompt_ids[:10])
        for number, request in enumerate(crowd(40, dice))
    ]
    model = HashModel(capacity=capacity)
    engine = make_engine(model)
    for request in requests:
        engine.add(request)
    steps = finish(engine)
    for request in requests:
        assert steps[request.key] == alone(request)
    assert engine.cache_counts.reused_tokens > 0


class SpentGuide:
    """A guide that can be followed for one token."""

    def __init__(self) -> None:
        self._count = 0

    def allowed(self) -> np.ndarray:
        if self._count:
            raise GuideError("too many states.")
        return np.ones(VOCABULARY, dtype=np.bool_)

    def advance(self, token_ids: Sequence[int]) -> None:
        self._count += len(token_ids)


def test_a_guide_that_can_not_be_followed_any_further_ends_its_request_with_the_reason() -> None:
    engine = make_engine()
    engine.add(make_request("guided"), cast("ConstraintMatcher", SpentGuide()))
    engine.add(make_request("other"))
    steps = finish(engine)
    assert steps["guided"][-1] == EngineStep("guided", guide_problem="too many states.")
    assert steps["other"] == alone(make_request("other"))


def test_a_prompt_that_fills_the_whole_cache_is_scored() -> None:
    """No token follows, so it needs no room for one."""
    engine = make_engine(HashModel(capacity=16))
    scoring = make_request(prompt_ids=tuple(range(16)), max_tokens=0)
    engine.add(replace(scoring, return_prompt_logprobs=True))
    (step,) = (step for _ in range(2) for step in engine.step())
    assert step.finish_reason == "length"
    assert step.prompt_log_probs is not None
    assert len(step.prompt_log_probs.values) == 15


def test_a_seed_decides_the_tokens() -> None:
    def sampled(seed: int) -> list[int | None]:
        return tokens(
            alone(make_request(sampling=SamplingParams(is_greedy=False, temperature=2.0, seed=seed), max_tokens=20))
        )

    assert sampled(5) == sampled(5)
    assert sampled(5) != sampled(6)


def test_a_request_ends_with_length_at_its_limit() -> None:
    steps = alone(make_request(max_tokens=5))
    assert [step.finish_reason for step in steps] == [None] * 4 + ["length"]


def test_an_end_token_ends_with_stop_and_is_handed_back() -> None:
    free = tokens(alone(make_request(max_tokens=5)))
    assert free[2] is not None
    steps = alone(make_request(max_tokens=5, stop_token_ids=(free[2],)))
    assert tokens(steps) == free[:3]
    assert [step.finish_reason for step in steps] == [None, None, "stop"]


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    free = tokens(alone(make_request(max_tokens=3)))
    assert free[2] is not None
    assert alone(make_request(max_tokens=3, stop_token_ids=(free[2],)))[-1].finish_reason == "stop"


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    assert len(alone(make_request(prompt_ids=(3, 96, 3), max_tokens=2, stop_token_ids=(3,)))) == 2


def test_logits_that_are_not_numbers_fail_only_their_request() -> None:
    model = HashModel()
    model.poison = 96
    engine = make_engine(model)
    engine.add(make_request("good", max_tokens=6))
    engine.add(make_request("bad", prompt_ids=(1, 96, 2), max_tokens=6))
    engine.add(make_request("also good", prompt_ids=(9,), max_tokens=6))
    steps = finish(engine)
    assert steps["bad"] == [EngineStep("bad", failed=True)]
    assert [step.finish_reason for step in steps["good"]][-1] == "length"
    assert len(steps["also good"]) == 6


# --- Cancelling ------------------------------------------------------------------------------------------------------


def test_a_cancelled_request_ends_at_once_and_frees_its_slot() -> None:
    engine = make_engine(max_active=1)
    engine.add(make_request("first", max_tokens=50))
    engine.add(make_request("second", max_tokens=2))
    engine.step()
    assert engine.cancel("first") == EngineStep("first", finish_reason="cancelled")
    assert (engine.active_count, engine.waiting_count) == (0, 1)
    assert {step.key for step in engine.step()} == {"second"}


def test_a_waiting_request_can_be_cancelled() -> None:
    engine = make_engine(max_active=1)
    engine.add(make_request("first", max_tokens=2))
    engine.add(make_request("second", max_tokens=50))
    engine.step()
    assert engine.cancel("second") is not None
    assert set(finish(engine)) == {"first"}


@pytest.mark.parametrize("key", ["never seen", "ended"])
def test_cancelling_what_is_not_there_does_nothing(key: str) -> None:
    engine = make_engine()
    engine.add(make_request("ended", max_tokens=1))
    finish(engine)
    assert engine.cancel(key) is None


def test_cancelling_at_any_moment_changes_nothing_for_the_others() -> None:
    dice = random.Random(4)
    requests = crowd(12, dice)
    expected = {request.key: alone(request) for request in requests}
    engine = make_engine(HashModel(), max_active=4)
    for request in requests:
        engine.add(request)
    gone = {request.key for request in requests[::3]}
    steps: dict[str, list[EngineStep]] = defaultdict(list)
    while engine.has_work:
        for step in engine.step():
            steps[step.key].append(step)
        for key in sorted(gone):
            if dice.random() < 0.2:
                engine.cancel(key)
    for request in requests:
        if request.key not in gone:
            assert steps[request.key] == expected[request.key]


def test_an_engine_that_is_done_has_no_work() -> None:
    engine = make_engine()
    assert not engine.has_work
    engine.add(make_request())
    assert engine.has_work
    finish(engine)
    assert (engine.active_count, engine.waiting_count) == (0, 0)


# --- Log probs, scoring, order ---------------------------------------------------------------------------------------


def expected_log_prob(history: tuple[int, ...], token_id: int) -> float:
    """By the definition, from the hash model's own logits."""
    logits = HashModel.logits_after(history).astype(np.float64)
    return float(logits[token_id] - np.log(np.exp(logits).sum()))


@pytest.mark.parametrize(("capacity", "max_batched_tokens"), [(CAPACITY * 10, 256), (CAPACITY, 5)])
def test_log_probs_of_prompt_and_output_are_those_of_the_model(capacity: int, max_batched_tokens: int) -> None:
    """Whatever the chunks of the prompt were, and although cramped caches make requests start again."""
    engine = make_engine(HashModel(capacity=capacity), max_batched_tokens=max_batched_tokens)
    requests = [
        replace(
            request,
            return_logprobs=True,
            num_top_logprobs=number % 3,
            return_prompt_logprobs=number % 2 == 0,
            sampling=replace(
                request.sampling, frequency_penalty=0.5
            ),  # log probs are of the model, not of the sampling
        )
        for number, request in enumerate(crowd(12, random.Random(5)))
    ]
    for request in requests:
        engine.add(request)
    steps = finish(engine)
    for request in requests:
        history = request.prompt_ids
        first, *others = made = steps[request.key]
        for step in made:
            assert step.token_id is not None
            assert step.log_prob == pytest.approx(expected_log_prob(history, step.token_id), abs=1e-4)
            assert len((step.top_log_probs or ((), ()))[0]) == request.num_top_logprobs
            history = (*history, step.token_id)
        assert all(step.prompt_log_probs is None for step in others)
        if not request.return_prompt_logprobs:
            assert first.prompt_log_probs is None
            continue
        assert first.prompt_log_probs is not None
        expected = [
            expected_log_prob(request.prompt_ids[:end], request.prompt_ids[end])
            for end in range(1, len(request.prompt_ids))
        ]
        assert first.prompt_log_probs.values == pytest.approx(expected, abs=1e-4)
        assert len(first.prompt_log_probs.tops) == (len(expected) if request.num_top_logprobs else 0)


@pytest.mark.parametrize("length", [1, 2, 100])
def test_a_prompt_is_scored_without_a_token(length: int) -> None:
    scored = replace(
        make_request(prompt_ids=tuple(range(length // 2)) + (5,) * (length - length // 2), max_tokens=0),
        return_logprobs=True,
        return_prompt_logprobs=True,
    )
    (step,) = alone(scored)
    assert (step.token_id, step.finish_reason) == (None, "length")
    assert step.prompt_log_probs is not None
    assert len(step.prompt_log_probs.values) == length - 1


def test_min_tokens_keeps_end_tokens_away_and_no_longer() -> None:
    every = tuple(range(1, VOCABULARY))  # all but token 0 end the request
    request = make_request(max_tokens=9, sampling=SamplingParams(min_tokens=4), stop_token_ids=every)
    assert [step.token_id == 0 for step in alone(request)] == [True] * 4 + [False]


def test_waiting_requests_go_by_priority_and_then_in_order() -> None:
    engine = make_engine(max_active=1)
    for number, priority in enumerate([0.5, 0.5, 0.9, 0.1, 0.9]):
        engine.add(replace(make_request(str(number), max_tokens=1), urgency=priority))
    assert list(finish(engine)) == ["2", "4", "0", "1", "3"]


def test_a_request_that_ends_early_leaves_nothing_behind() -> None:
    engine = make_engine(max_batched_tokens=2, max_active=1)
    request = replace(make_request(prompt_ids=(1,) * 9), return_logprobs=True, return_prompt_logprobs=True)
    engine.add(request)
    engine.step()
    assert engine.cancel(request.key) is not None
    assert engine._prompt_log_probs == {}
