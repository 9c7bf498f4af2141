"""The CPU engine without OpenVINO: what a request gets must not depend on who else is served, or on the KV cache."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from hash_model import CAPACITY, VOCABULARY, HashModel
from sample_requests import make_request

from llm_pipeline.executors.cpu_engine.engine import Engine
from llm_pipeline.executors.cpu_engine.wire import EngineStep
from llm_pipeline.messages import GenerationRequest, Sampling


def make_engine(model: HashModel | None = None, *, max_batched_tokens: int = 16, max_active: int = 8) -> Engine:
    return Engine(model or HashModel(), max_batched_tokens=max_batched_tokens, max_active=max_active)


def finish(engine: Engine) -> dict[str, list[EngineStep]]:
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
            sampling=Sampling(is_greedy=number % 2 == 0, temperature=1.5, top_k=20, seed=dice.getrandbits(64)),
            end_ids=(0, 1),
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


def test_a_seed_decides_the_tokens() -> None:
    def sampled(seed: int) -> list[int | None]:
        return tokens(
            alone(make_request(sampling=Sampling(is_greedy=False, temperature=2.0, seed=seed), max_tokens=20))
        )

    assert sampled(5) == sampled(5)
    assert sampled(5) != sampled(6)


def test_a_request_ends_with_length_at_its_limit() -> None:
    steps = alone(make_request(max_tokens=5))
    assert [step.finish_reason for step in steps] == [None] * 4 + ["length"]


def test_an_end_token_ends_with_stop_and_is_handed_back() -> None:
    free = tokens(alone(make_request(max_tokens=5)))
    assert free[2] is not None
    steps = alone(make_request(max_tokens=5, end_ids=(free[2],)))
    assert tokens(steps) == free[:3]
    assert [step.finish_reason for step in steps] == [None, None, "stop"]


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    free = tokens(alone(make_request(max_tokens=3)))
    assert free[2] is not None
    assert alone(make_request(max_tokens=3, end_ids=(free[2],)))[-1].finish_reason == "stop"


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    assert len(alone(make_request(prompt_ids=(3, 96, 3), max_tokens=2, end_ids=(3,)))) == 2


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
