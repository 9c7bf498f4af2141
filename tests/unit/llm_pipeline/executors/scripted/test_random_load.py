"""Random requests and cancellations: every request ends once, with its own tokens in order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.executors.scripted.executor import ScriptedExecutor
from llm_pipeline.executors.scripted.scripts import Script
from llm_pipeline.protocol.messages import FinishReason
from tests.support.executor_rules import RuleBench

WORDS = (3, 4, 5)
SCRIPTED_PROMPT, STALLING_PROMPT = 1, 2
SCRIPT_IDS = (70, 71, 72, 73)
SCRIPTS = [
    Script(prompt_ids=(SCRIPTED_PROMPT,), token_ids=SCRIPT_IDS),
    Script(prompt_ids=(STALLING_PROMPT,), token_ids=SCRIPT_IDS[:1], stall=True),
]

submissions = st.tuples(st.integers(1, 6), st.integers(1, 30), st.sampled_from([0.1, 0.5, 0.9]))
cancellations = st.integers(0, 40)  # index of a request


def endless_tokens(prompt: int, count: int) -> list[int]:
    """Returns the tokens of a request if nothing ends it before `count` of them."""
    if prompt in (SCRIPTED_PROMPT, STALLING_PROMPT):
        return list(SCRIPT_IDS)[:count]
    return [WORDS[(prompt + position) % len(WORDS)] for position in range(count)]


@settings(max_examples=60)
@given(st.lists(submissions | cancellations, max_size=40), st.integers(1, 5), st.sampled_from([0, 5000]))
def test_every_request_ends_once_with_its_own_tokens(
    actions: list[tuple[int, int, float] | int], max_active: int, steps_per_s: int
) -> None:
    bench = RuleBench(
        lambda sink: ScriptedExecutor(SCRIPTS, WORDS, sink, steps_per_s=steps_per_s, max_active=max_active),
        long=10**9,
        max_active=max_active,
    )
    requests: dict[int, tuple[int, int]] = {}
    cancelled: set[int] = set()
    for action in actions:
        if isinstance(action, tuple):
            prompt, max_tokens, priority = action
            number = bench.submit(prompt_ids=(prompt,), max_tokens=max_tokens, priority=priority)
            requests[number] = (prompt, max_tokens)
        elif action < len(requests):
            number = list(requests)[action]
            cancelled.add(number)
            bench.executor.cancel(number)
    stalling = {number for number, (prompt, _) in requests.items() if prompt == STALLING_PROMPT}
    for number in stalling:  # nothing else ends them
        bench.executor.cancel(number)
    for number, (prompt, max_tokens) in requests.items():
        last = bench.end_of(number)
        token_ids, all_ids = bench.recorder.token_ids(number), endless_tokens(prompt, max_tokens)
        if last.finish_reason is FinishReason.CANCELLED:
            assert number in cancelled | stalling
            assert token_ids == all_ids[: len(token_ids)]
        else:
            assert last.finish_reason is (FinishReason.LENGTH if len(all_ids) == max_tokens else FinishReason.STOP)
            assert token_ids == all_ids
    bench.executor.close()
    assert sorted(bench.recorder.ended) == sorted(requests)
    assert bench.recorder.violations == []
    assert (bench.executor.stats().active_requests, bench.executor.stats().queued_requests) == (0, 0)
