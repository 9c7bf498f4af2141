"""Prompt lookup changes the number of steps and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as SequenceType
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.executors.cpu.engine.ipc import StepOutput
from llm_pipeline.executors.cpu.engine.prompt_lookup import (
    AcceptanceRate,
    DraftLimits,
    Occurrences,
    following,
    share_rows,
)
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk
from llm_pipeline.guides.masks import GuideError
from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, SamplingParams
from tests.support.fake_masks import FakeGuides, Mask, guided
from tests.support.hash_model import CAPACITY, VOCABULARY, HashModel, RepeatingModel
from tests.support.sample_requests import make_request

DRAFT_TOKENS = 14
REPETITIVE = tuple(range(10, 20)) * 4
token_ids = st.integers(0, VOCABULARY - 1)


@dataclass
class Pool:
    """The resources of an engine."""

    capacity: int = CAPACITY * 10
    block_size: int = 4
    max_batched_tokens: int = 256
    max_active: int = 8

    def engine(self, model: HashModel, *, draft_tokens: int = DRAFT_TOKENS, **options: Any) -> EngineCore:
        return EngineCore(
            model,
            max_batched_tokens=self.max_batched_tokens,
            max_active=self.max_active,
            max_draft_tokens=draft_tokens,
            **options,
        )

    def model(self) -> RepeatingModel:
        return RepeatingModel(block_size=self.block_size, capacity=self.capacity)


@dataclass
class Output:
    """All that a client sees of a request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    tops: list[object] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: ErrorCode | None = None
    prompt_logprobs: object = None

    def add(self, step: StepOutput) -> None:
        assert (self.finish_reason, self.error) == (None, None), "a step after the end"
        self.token_ids += step.token_ids
        self.logprobs += step.logprobs
        self.tops += step.top_logprobs
        self.finish_reason = step.finish_reason
        self.error = None if step.error is None else step.error.code
        self.prompt_logprobs = self.prompt_logprobs or step.prompt_logprobs


def run(
    engine: EngineCore, requests: SequenceType[GenerationRequest], arrivals: SequenceType[int] = ()
) -> dict[str, Output]:
    """Runs requests, the n-th of which arrives `arrivals[n]` steps after the previous one."""
    outputs: defaultdict[str, Output] = defaultdict(Output)

    def step() -> None:
        if engine.has_work:
            for output in engine.step():
                outputs[output.key].add(output)

    for index, request in enumerate(requests):
        for _ in range(arrivals[index] if arrivals else 0):
            step()
        engine.add(request)
    while engine.has_work:
        step()
    return outputs


def alone(request: GenerationRequest) -> Output:
    """Runs one request without drafts and with room for it."""
    pool = Pool()
    return run(pool.engine(pool.model(), draft_tokens=0), [request])[request.key]


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    params = SamplingParams(
        is_greedy=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.5, 1.0])),
        top_k=draw(st.sampled_from([0, 20])),
        top_p=draw(st.sampled_from([0.9, 1.0])),
        seed=draw(st.integers(0, 2**64 - 1)),
    )
    if draw(st.booleans()):
        params = replace(
            params,
            repetition_penalty=draw(st.sampled_from([1.0, 1.2])),
            frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
            min_tokens=draw(st.integers(0, 10)),
            logit_bias=tuple(draw(st.lists(st.tuples(token_ids, st.floats(-3, 3)), max_size=3))),
            bad_words=tuple(draw(st.lists(st.lists(token_ids, min_size=1, max_size=2).map(tuple), max_size=3))),
        )
    return params


@st.composite
def requests(draw: st.DrawFn) -> list[GenerationRequest]:
    made = []
    for number in range(draw(st.integers(1, 6))):
        pattern = draw(st.lists(token_ids, min_size=1, max_size=8))
        prompt = (pattern * 8)[: draw(st.integers(1, 40))]
        made.append(
            replace(
                make_request(
                    str(number),
                    tuple(prompt),
                    draw(st.integers(1, 60)),
                    draw(sampling_params()),
                    tuple(draw(st.lists(token_ids, max_size=2))),
                ),
                return_logprobs=draw(st.booleans()),
                num_top_logprobs=draw(st.integers(0, 2)),
            )
        )
        made[-1] = replace(made[-1], return_prompt_logprobs=made[-1].return_logprobs and draw(st.booleans()))
    return made


pools = st.builds(
    Pool,
    capacity=st.sampled_from([CAPACITY, CAPACITY * 10]),
    block_size=st.sampled_from([1, 4, 32]),
    max_batched_tokens=st.sampled_from([1, 7, 16, 256]),
    max_active=st.sampled_from([1, 3, 8]),
)


@settings(deadline=None)
@given(requests(), pools, st.lists(st.integers(0, 6), min_size=6, max_size=6))
def test_drafts_change_nothing_about_any_request(
    requests: list[GenerationRequest], pool: Pool, arrivals: list[int]
) -> None:
    outputs = run(pool.engine(pool.model()), requests, arrivals)
    for request in requests:
        assert outputs[request.key] == alone(request)


@given(st.integers(0, 12), st.booleans())
def test_a_cancelled_request_has_the_beginning_of_its_tokens_and_leaves_nothing(steps: int, is_greedy: bool) -> None:
    pool = Pool(capacity=CAPACITY)
    engine = pool.engine(pool.model())
    sampling = SamplingParams(is_greedy=is_greedy, seed=7)
    cancelled = make_request("cancelled", REPETITIVE, 60, sampling)
    other = make_request("other", REPETITIVE[:21], 60, sampling)
    engine.add(cancelled)
    received = [output for _ in range(steps) for output in engine.step()]
    engine.cancel(cancelled.key)
    got = [token_id for output in received for token_id in output.token_ids]
    assert got == alone(cancelled).token_ids[: len(got)]
    assert run(engine, [other])[other.key] == alone(other)
    assert engine.cache_counts.used_share == 0


def test_repetitive_text_takes_fewer_steps_than_tokens() -> None:
    pool = Pool()
    model = pool.model()
    engine = pool.engine(model)
    output = run(engine, [make_request(prompt_ids=REPETITIVE, max_tokens=100)])["request"]
    drafts = engine.draft_counts
    assert len(output.token_ids) == 100
    assert model.runs < 60
    assert drafts.accepted == 100 - model.runs
    assert drafts.accepted > drafts.drafted / 2


def test_text_that_does_not_repeat_itself_is_hardly_drafted() -> None:
    pool = Pool(capacity=CAPACITY * 20)
    model = HashModel(capacity=pool.capacity)
    engine = pool.engine(model)
    run(engine, [make_request(prompt_ids=REPETITIVE, max_tokens=500)])
    assert engine.draft_counts.drafted < 25


def test_without_draft_tokens_nothing_is_drafted() -> None:
    pool = Pool()
    engine = pool.engine(pool.model(), draft_tokens=0)
    run(engine, [make_request(prompt_ids=REPETITIVE, max_tokens=20)])
    assert engine.draft_counts == (0, 0)


class RecordingModel(RepeatingModel):
    """Records the chunks of each step."""

    def __init__(self) -> None:
        super().__init__(capacity=CAPACITY * 20)
        self.steps: list[list[ScheduledChunk]] = []

    def run(self, chunks: SequenceType[ScheduledChunk]) -> npt.NDArray[np.float32]:
        self.steps.append(list(chunks))
        return super().run(chunks)


@pytest.mark.parametrize("streams", [1, 2, 4, 8, 20])
def test_step_with_drafts_is_no_larger_than_the_model_allows(streams: int) -> None:
    model = RecordingModel()
    engine = Pool(max_active=streams).engine(model)
    run(engine, [make_request(str(n), REPETITIVE, 40) for n in range(streams)])
    drafting = [chunks for chunks in model.steps if any(chunk.draft for chunk in chunks)]
    assert all(sum(len(chunk.tokens) for chunk in chunks) <= model.draft_step_tokens for chunks in drafting)
    assert all(len(chunk.tokens) == 1 + len(chunk.draft) for chunks in drafting for chunk in chunks)


def test_logits_after_a_rejected_draft_token_do_not_matter() -> None:
    """The token after the pattern is another than drafted; what would have followed the draft is not finite."""
    prompt = REPETITIVE
    free = alone(make_request(prompt_ids=prompt, max_tokens=40)).token_ids
    history = [*prompt, *free]
    model = RepeatingModel(capacity=CAPACITY * 10)
    model.poison = next(token for token in range(VOCABULARY) if token not in history)
    engine = Pool().engine(model)
    poisoned = make_request("poisoned", (*prompt, model.poison), max_tokens=5)
    outputs = run(engine, [make_request(prompt_ids=prompt, max_tokens=40), poisoned])
    assert outputs["request"].token_ids == free
    assert outputs["poisoned"].error is ErrorCode.INTERNAL_ERROR


def forbids_some(text: tuple[int, ...]) -> Mask:
    """Forbids a few tokens at each position, and everything after 30."""
    if len(text) == 30:
        raise GuideError("too many states.")
    return np.asarray(np.arange(VOCABULARY) % 7 != len(text) % 7)


@pytest.mark.parametrize("is_greedy", [True, False])
def test_guided_output_is_the_same_up_to_its_error(is_greedy: bool) -> None:
    def output(draft_tokens: int) -> Output:
        pool = Pool()
        engine = pool.engine(pool.model(), draft_tokens=draft_tokens, connect_masks=FakeGuides(forbids_some).connect)
        request = make_request("guided", REPETITIVE, 60, SamplingParams(is_greedy=is_greedy, seed=3))
        return run(engine, [guided(request)])["guided"]

    plain, drafted = output(0), output(DRAFT_TOKENS)
    assert drafted == plain
    assert len(drafted.token_ids) == 30
    assert drafted.error is ErrorCode.VALUE_OUT_OF_RANGE


# --- Finding a draft -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=60), st.data())
def test_match_is_the_last_occurrence_of_the_longest_suffix(tokens: list[int], data: st.DataObject) -> None:
    """However the tokens arrive."""
    occurrences = Occurrences()
    for end in sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4))):
        occurrences.find(tokens[:end])
    expected = None
    for count in (5, 3):
        ends = [end for end in range(count, len(tokens)) if tokens[end - count : end] == tokens[-count:]]
        if expected is None and ends:
            expected = (count, ends[-1])
    assert occurrences.find(tokens) == expected


def test_draft_repeats_a_period_that_is_shorter_than_it() -> None:
    assert following([9, 1, 2, 3], 1, 7) == (1, 2, 3, 1, 2, 3, 1)


# --- Lengths of drafts -----------------------------------------------------------------------------------------------

LIMITS = DraftLimits(DRAFT_TOKENS, 15)


@pytest.mark.parametrize(("probability", "least", "most"), [(0.99, 14, 14), (0.5, 1, 4), (0.05, 0, 0)])
def test_draft_of_a_lone_sequence_is_as_long_as_it_is_likely(probability: float, least: int, most: int) -> None:
    assert least <= share_rows({0: probability}, LIMITS, sequences=1, mean_context=100)[0] <= most


@given(st.dictionaries(st.integers(0, 30), st.floats(0, 1)), st.integers(1, 40), st.floats(0, 8192))
def test_drafts_fit_into_the_step(candidates: dict[int, float], sequences: int, context: float) -> None:
    counts = share_rows(candidates, LIMITS, sequences=sequences, mean_context=context)
    assert counts.keys() == candidates.keys()
    assert sum(counts.values()) <= max(0, LIMITS.step_rows - sequences)
    assert all(0 <= count <= LIMITS.per_sequence for count in counts.values())


def test_more_sequences_need_more_certain_drafts() -> None:
    few = share_rows({0: 0.4}, LIMITS, sequences=1, mean_context=100)[0]
    many = share_rows({0: 0.4}, LIMITS, sequences=10, mean_context=100)[0]
    assert few > many == 0


def test_rejections_end_the_drafts_of_a_sequence_and_acceptances_bring_them_back() -> None:
    rate = AcceptanceRate()
    for _ in range(5):
        rate.record(3, 0)
    low = rate.value
    assert low < 0.1
    for _ in range(200):
        rate.recover()
    assert rate.value > low
    rate.record(1, 1)
    rate.record(3, 3)
    assert rate.value > 0.5
