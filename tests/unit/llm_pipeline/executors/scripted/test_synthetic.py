"""Synthetic streams make the tokens that a loop over one stream at a time would."""

from __future__ import annotations

import itertools
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.executors.scripted.synthetic import SyntheticStreams, SyntheticText, SyntheticWords
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, SamplingParams
from tests.support.executor_rules import outputs_of, violations_of
from tests.support.sample_requests import make_request

WORDS = (30, 10, 40, 20, 50)

requests = st.builds(
    lambda prompt, max_tokens, stops, min_tokens: make_request(
        prompt_ids=prompt,
        max_tokens=max_tokens,
        stop_token_ids=stops,
        sampling=SamplingParams(min_tokens=min_tokens),
    ),
    prompt=st.lists(st.integers(0, 5000), min_size=1, max_size=4).map(tuple),
    max_tokens=st.integers(1, 25),
    stops=st.lists(st.sampled_from((*WORDS, 99)), max_size=2).map(tuple),
    min_tokens=st.integers(0, 30),
)


def expected_text(request: GenerationRequest) -> tuple[list[int], FinishReason]:
    """Returns the tokens and the finish reason of a request, made token by token."""
    first = sum(request.prompt_ids) % 997
    token_ids: list[int] = []
    for position in itertools.count(first):
        token_ids.append(WORDS[position % len(WORDS)])
        if len(token_ids) > request.sampling.min_tokens and token_ids[-1] in request.stop_token_ids:
            return token_ids, FinishReason.STOP
        if len(token_ids) == request.max_tokens:
            return token_ids, FinishReason.LENGTH
    raise AssertionError


@given(st.lists(st.tuples(requests, st.integers(0, 10), st.none() | st.integers(0, 30)), max_size=12))
def test_streams_that_begin_and_are_removed_at_any_step_get_their_own_tokens(
    plans: list[tuple[GenerationRequest, int, int | None]],
) -> None:
    """Each plan has the steps in which the stream begins and in which it is removed."""
    words = SyntheticWords(WORDS)
    streams = SyntheticStreams(words)
    token_ids: dict[int, list[int]] = defaultdict(list)
    reasons: dict[int, FinishReason | None] = {}
    for index in range(45):
        streams.remove([number for number, (_, _, removed) in enumerate(plans) if removed == index])
        begun = [(number, request) for number, (request, begins, _) in enumerate(plans) if begins == index]
        streams.begin([(number, words.text_for(request)) for number, request in begun])
        step = streams.step()
        assert violations_of(step) == []
        for number, output in outputs_of(step).items():
            token_ids[number] += output.token_ids
            if output.is_final:
                assert number not in reasons
                reasons[number] = output.finish_reason
    assert len(streams) == 0 or any(removed is not None for _, _, removed in plans)
    for number, (request, begins, removed) in enumerate(plans):
        expected, reason = expected_text(request)
        if removed is not None and begins < removed < begins + len(expected):
            assert token_ids[number] == expected[: removed - begins]
            assert number not in reasons
        else:
            assert (token_ids[number], reasons[number]) == (expected, reason)


def test_length_and_prompt_may_have_any_size() -> None:
    request = make_request(prompt_ids=(2**70,), max_tokens=2**70, sampling=SamplingParams(min_tokens=2**70))
    streams, words = SyntheticStreams(SyntheticWords(WORDS)), SyntheticWords(WORDS)
    streams.begin([(1, words.text_for(request))])
    assert not streams.step().ends


def test_arrays_of_a_step_do_not_change_afterwards() -> None:
    streams = SyntheticStreams(SyntheticWords(WORDS))
    streams.begin([(1, SyntheticText(0, 2, FinishReason.LENGTH)), (2, SyntheticText(3, 9, FinishReason.LENGTH))])
    first = streams.step()
    streams.begin([(3, SyntheticText(1, 9, FinishReason.LENGTH))])
    streams.step()
    streams.remove([2])
    streams.step()
    assert (first.numbers.tolist(), first.token_ids.tolist()) == ([1, 2], [30, 20])
