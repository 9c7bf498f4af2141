"""Random requests, time limits and cancellations on the stand-in: every request ends once, with its own tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import FinishReason
from tests.support.executor_rules import Output
from tests.support.llm_bench import LlmBench
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import TrtllmBench, trtllm_bench

MAX_TOKENS = 12
FAILS, BREAKS, STALLS = (900, 901, 902)  # prompts of one token
RULES = [
    {"prompt_ids": [FAILS], "token_ids": [70], "error": "an error of one request"},
    {"prompt_ids": [BREAKS], "token_ids": [70], "breaks": True},
    {"prompt_ids": [STALLS], "token_ids": [70], "stalls": True},
]


@dataclass(frozen=True)
class Submission:
    prompt: int
    max_tokens: int
    time_limit_s: float | None
    tenant: str
    urgency: float


submissions = st.builds(
    Submission,
    st.sampled_from([1, 2, 3, FAILS, BREAKS, STALLS]),
    st.integers(1, MAX_TOKENS),
    st.sampled_from([None, None, 0.01, 5.0]),
    st.sampled_from(["a", "b"]),
    st.sampled_from([0.1, 0.5, 0.9]),
)
cancellations = st.integers(0, 20)  # index of a request


@pytest.fixture(scope="module", params=["1.2.1", "1.3.0"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrtllmBench]:
    version = request.param
    with trtllm_bench(tmp_path_factory.mktemp("llm"), LlmBench) as create:
        bench = create(
            script={"version": version, "rules": RULES},
            engine={"version": version},
        )
        for prompt in (1, 2, 3):
            bench.end_of(make_request(f"alone {prompt}", (prompt,), MAX_TOKENS))
        yield bench


def is_allowed(last: Output, sent: Submission, *, is_cancelled: bool) -> bool:
    if last.error is not None:
        timed_out = last.error.code is ErrorCode.DEADLINE_EXCEEDED and sent.time_limit_s is not None
        return timed_out or (last.error.code is ErrorCode.INTERNAL_ERROR and sent.prompt in (FAILS, BREAKS))
    if last.finish_reason is FinishReason.CANCELLED:
        return is_cancelled
    return last.finish_reason is FinishReason.LENGTH


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(submissions | cancellations, min_size=4, max_size=30))
def test_every_request_ends_once_with_its_own_tokens(bench: TrtllmBench, actions: list[Submission | int]) -> None:
    sent: dict[int, Submission] = {}
    cancelled: set[int] = set()
    for action in actions:
        if isinstance(action, Submission):
            request = replace(
                make_request("random", (action.prompt,), action.max_tokens),
                time_limit_s=action.time_limit_s,
                tenant=action.tenant,
                urgency=action.urgency,
            )
            sent[bench.submit(request)] = action
        elif action < len(sent):
            number = list(sent)[action]
            cancelled.add(number)
            bench.executor.cancel(number)
    for number, submission in sent.items():
        if submission.prompt == STALLS:  # nothing else ends them
            cancelled.add(number)
            bench.executor.cancel(number)
    for number, submission in sent.items():
        last = bench.recorder.wait_for_end(number)
        assert is_allowed(last, submission, is_cancelled=number in cancelled)
        token_ids = bench.recorder.token_ids(number)
        expected = [70] if submission.prompt >= FAILS else bench.token_ids(f"alone {submission.prompt}")
        assert token_ids == expected[: len(token_ids)]
        if last.finish_reason is FinishReason.LENGTH:
            assert len(token_ids) == submission.max_tokens
    ended = [number for number in bench.recorder.ended if number in sent]
    assert sorted(ended) == sorted(sent)
    assert bench.recorder.violations == []
    stats = bench.executor.stats()
    assert (stats.active_requests, stats.queued_requests) == (0, 0)
    assert bench.exits == []
