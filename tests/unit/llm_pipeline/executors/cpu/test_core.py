"""The CPU engine without OpenVINO: a request's output does not depend on other requests or on the KV cache."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.executors.cpu.engine.ipc import StepOutput
from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, SamplingParams
from tests.support.hash_model import CAPACITY, VOCABULARY, HashModel
from tests.support.sample_requests import make_request


def make_engine(model: HashModel | None = None, *, max_batched_tokens: int = 16, max_active: int = 8) -> EngineCore:
    return EngineCore(model or HashModel(), max_batched_tokens=max_batched_tokens, max_active=max_active)


def finish(engine: EngineCore) -> dict[str, list[StepOutput]]:
    """Runs the engine until it has no work and returns the steps of each request."""
    steps = defaultdict(list)
    while engine.has_work:
        for step in engine.step():
            steps[step.key].append(step)
    return steps


def tokens(steps: list[StepOutput]) -> list[int]:
    return [token_id for step in steps for token_id in step.token_ids]


def finish_reasons(steps: list[StepOutput]) -> list[FinishReason | None]:
    return [step.finish_reason for step in steps]


def alone(request: GenerationRequest) -> list[StepOutput]:
    """Runs one request on its own engine and returns its steps."""
    engine = make_engine()
    engine.add(request)
    return finish(engine)[request.key]


def random_requests(count: int, dice: random.Random) -> list[GenerationRequest]:
    """Returns greedy and sampled requests of different lengths."""
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
def test_request_gets_the_same_tokens_alone_and_in_any_batch(
    seed: int, capacity: int, block_size: int, max_batched_tokens: int, max_active: int
) -> None:
    dice = random.Random(seed)
    requests = random_requests(20, dice)
    engine = make_engine(
        HashModel(block_size=block_size, capacity=capacity),
        max_batched_tokens=max_batched_tokens,
        max_active=max_active,
    )
    steps: dict[str, list[StepOutput]] = defaultdict(list)
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
def test_requests_with_equal_prefixes_get_the_same_tokens_as_alone(capacity: int) -> None:
    dice = random.Random(5)
    prefixes = [tuple(dice.randrange(VOCABULARY) for _ in range(24)) for _ in range(3)]
    requests = [
        replace(request, prompt_ids=prefixes[number % 3][: dice.randint(1, 24)] + request.prompt_ids[:10])
        for number, request in enumerate(random_requests(40, dice))
    ]
    model = HashModel(capacity=capacity)
    engine = make_engine(model)
    for request in requests:
        engine.add(request)
    steps = finish(engine)
    for request in requests:
        assert steps[request.key] == alone(request)
    assert engine.cache_counts.reused_tokens > 0


def test_prompt_that_fills_the_whole_kv_cache_is_scored() -> None:
    """No token follows, so no block is needed for one."""
    engine = make_engine(HashModel(capacity=16))
    scoring = make_request(prompt_ids=tuple(range(16)), max_tokens=0)
    engine.add(replace(scoring, return_prompt_logprobs=True))
    (step,) = (step for _ in range(2) for step in engine.step())
    assert step.finish_reason is FinishReason.LENGTH
    assert step.prompt_logprobs is not None
    assert len(step.prompt_logprobs.values) == 15


def test_seed_determines_the_tokens() -> None:
    def sampled(seed: int) -> list[int]:
        return tokens(
            alone(make_request(sampling=SamplingParams(is_greedy=False, temperature=2.0, seed=seed), max_tokens=20))
        )

    assert sampled(5) == sampled(5)
    assert sampled(5) != sampled(6)


def test_request_ends_with_length_at_max_tokens() -> None:
    steps = alone(make_request(max_tokens=5))
    assert finish_reasons(steps) == [None] * 4 + [FinishReason.LENGTH]


def test_stop_token_ends_a_request_and_is_in_the_output() -> None:
    free = tokens(alone(make_request(max_tokens=5)))
    steps = alone(make_request(max_tokens=5, stop_token_ids=(free[2],)))
    assert tokens(steps) == free[:3]
    assert finish_reasons(steps) == [None, None, FinishReason.STOP]


def test_stop_token_at_max_tokens_is_a_stop() -> None:
    free = tokens(alone(make_request(max_tokens=3)))
    assert alone(make_request(max_tokens=3, stop_token_ids=(free[2],)))[-1].finish_reason is FinishReason.STOP


def test_stop_token_in_the_prompt_is_ignored() -> None:
    assert len(alone(make_request(prompt_ids=(3, 96, 3), max_tokens=2, stop_token_ids=(3,)))) == 2


def test_logits_that_are_not_finite_fail_only_their_request() -> None:
    model = HashModel()
    model.poison = 96
    engine = make_engine(model)
    engine.add(make_request("good", max_tokens=6))
    engine.add(make_request("bad", prompt_ids=(1, 96, 2), max_tokens=6))
    engine.add(make_request("also good", prompt_ids=(9,), max_tokens=6))
    steps = finish(engine)
    (failed,) = steps["bad"]
    assert failed.error is not None
    assert failed.error.code is ErrorCode.INTERNAL_ERROR
    assert steps["good"][-1].finish_reason is FinishReason.LENGTH
    assert len(steps["also good"]) == 6


# --- Cancelling ------------------------------------------------------------------------------------------------------


def test_cancelled_request_ends_at_once_and_frees_its_slot() -> None:
    engine = make_engine(max_active=1)
    engine.add(make_request("first", max_tokens=50))
    engine.add(make_request("second", max_tokens=2))
    engine.step()
    assert engine.cancel("first") == StepOutput("first", finish_reason=FinishReason.CANCELLED)
    assert engine.active_count == 0
    assert {step.key for step in engine.step()} == {"second"}


def test_waiting_request_can_be_cancelled() -> None:
    engine = make_engine(max_active=1)
    engine.add(make_request("first", max_tokens=2))
    engine.add(make_request("second", max_tokens=50))
    engine.step()
    assert engine.cancel("second") is not None
    assert set(finish(engine)) == {"first"}


@pytest.mark.parametrize("key", ["never seen", "ended"])
def test_cancel_of_an_unknown_key_returns_none(key: str) -> None:
    engine = make_engine()
    engine.add(make_request("ended", max_tokens=1))
    finish(engine)
    assert engine.cancel(key) is None


def test_cancelling_does_not_change_other_requests() -> None:
    dice = random.Random(4)
    requests = random_requests(12, dice)
    expected = {request.key: alone(request) for request in requests}
    engine = make_engine(HashModel(), max_active=4)
    for request in requests:
        engine.add(request)
    gone = {request.key for request in requests[::3]}
    steps: dict[str, list[StepOutput]] = defaultdict(list)
    while engine.has_work:
        for step in engine.step():
            steps[step.key].append(step)
        for key in sorted(gone):
            if dice.random() < 0.2:
                engine.cancel(key)
    for request in requests:
        if request.key not in gone:
            assert steps[request.key] == expected[request.key]


def test_engine_without_requests_has_no_work() -> None:
    engine = make_engine()
    states = [engine.has_work]
    engine.add(make_request())
    states.append(engine.has_work)
    finish(engine)
    states.append(engine.has_work)
    assert states == [False, True, False]
    assert engine.active_count == 0


# --- Logprobs, scoring, order ---------------------------------------------------------------------------------------


def expected_logprob(history: tuple[int, ...], token_id: int) -> float:
    """Returns the logprob of a token by its definition, from the hash model's logits."""
    logits = HashModel.logits_after(history).astype(np.float64)
    return float(logits[token_id] - np.log(np.exp(logits).sum()))


@pytest.mark.parametrize(("capacity", "max_batched_tokens"), [(CAPACITY * 10, 256), (CAPACITY, 5)])
def test_logprobs_of_prompt_and_output_are_those_of_the_model(capacity: int, max_batched_tokens: int) -> None:
    """However the prompt is split into chunks, and although requests are preempted if the cache is small."""
    engine = make_engine(HashModel(capacity=capacity), max_batched_tokens=max_batched_tokens)
    requests = [
        replace(
            request,
            return_logprobs=True,
            num_top_logprobs=number % 3,
            return_prompt_logprobs=number % 2 == 0,
            sampling=replace(request.sampling, frequency_penalty=0.5),  # sampling parameters do not change logprobs
        )
        for number, request in enumerate(random_requests(12, random.Random(5)))
    ]
    for request in requests:
        engine.add(request)
    steps = finish(engine)
    for request in requests:
        history = request.prompt_ids
        first, *others = all_steps = steps[request.key]
        for step in all_steps:
            (token_id,) = step.token_ids
            (logprob,) = step.logprobs
            assert logprob == pytest.approx(expected_logprob(history, token_id), abs=1e-4)
            top_ids = [ids for ids, _ in step.top_logprobs]
            assert [len(ids) for ids in top_ids] == ([request.num_top_logprobs] if request.num_top_logprobs else [])
            history = (*history, token_id)
        assert all(step.prompt_logprobs is None for step in others)
        if not request.return_prompt_logprobs:
            assert first.prompt_logprobs is None
            continue
        assert first.prompt_logprobs is not None
        expected = [
            expected_logprob(request.prompt_ids[:end], request.prompt_ids[end])
            for end in range(1, len(request.prompt_ids))
        ]
        assert first.prompt_logprobs.values == pytest.approx(expected, abs=1e-4)
        assert len(first.prompt_logprobs.tops) == (len(expected) if request.num_top_logprobs else 0)


@pytest.mark.parametrize("length", [1, 2, 100])
def test_prompt_is_scored_without_generating_a_token(length: int) -> None:
    scored = replace(
        make_request(prompt_ids=tuple(range(length // 2)) + (5,) * (length - length // 2), max_tokens=0),
        return_logprobs=True,
        return_prompt_logprobs=True,
    )
    (step,) = alone(scored)
    assert (step.token_ids, step.finish_reason) == ((), FinishReason.LENGTH)
    assert step.prompt_logprobs is not None
    assert len(step.prompt_logprobs.values) == length - 1


def test_min_tokens_suppresses_stop_tokens_until_it_is_reached() -> None:
    all_but_0 = tuple(range(1, VOCABULARY))
    request = make_request(max_tokens=9, sampling=SamplingParams(min_tokens=4), stop_token_ids=all_but_0)
    assert [token_id == 0 for token_id in tokens(alone(request))] == [True] * 4 + [False]


def test_waiting_requests_start_by_priority_and_then_in_order() -> None:
    engine = make_engine(max_active=1)
    for number, priority in enumerate([0.5, 0.5, 0.9, 0.1, 0.9]):
        engine.add(replace(make_request(str(number), max_tokens=1), urgency=priority))
    assert list(finish(engine)) == ["2", "4", "0", "1", "3"]


def test_key_of_a_request_cancelled_during_scoring_can_be_used_again() -> None:
    """Its partial prompt logprobs are dropped."""
    engine = make_engine(max_batched_tokens=2, max_active=1)
    request = replace(make_request(prompt_ids=(1,) * 9), return_logprobs=True, return_prompt_logprobs=True)
    engine.add(request)
    engine.step()
    assert engine.cancel(request.key) is not None
    engine.add(request)
    assert finish(engine)[request.key] == alone(request)
