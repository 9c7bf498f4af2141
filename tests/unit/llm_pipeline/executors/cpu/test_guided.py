"""Guided requests in the CPU engine: masks that arrive late delay their own request, and change no token of any."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.executors.cpu.engine.ipc import StepOutput
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk
from llm_pipeline.guides.masks import GuideError, GuidesUnavailableError
from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import GUIDE_PARAM, FinishReason, GenerationRequest, SamplingParams
from tests.support.fake_masks import FakeGuides, Mask, every_seventh_forbidden, guided
from tests.support.hash_model import CAPACITY, VOCABULARY, HashModel, RepeatingModel
from tests.support.sample_requests import make_request

REPETITIVE = tuple(range(10, 20)) * 3


class VolatileModel(RepeatingModel):
    """A model whose logits are valid until its next run, as the real one's are."""

    def __init__(self, *, capacity: int = CAPACITY * 10) -> None:
        super().__init__(capacity=capacity)
        self._logits_of_last_run = np.empty(0, np.float32)

    def run(self, chunks: Sequence[ScheduledChunk]) -> npt.NDArray[np.float32]:
        self._logits_of_last_run[:] = np.nan
        self._logits_of_last_run = super().run(chunks)
        return self._logits_of_last_run


class Bench:
    """An engine whose clock the test moves."""

    def __init__(
        self,
        guides: FakeGuides,
        model: HashModel | None = None,
        *,
        max_active: int = 4,
        max_batched_tokens: int = 64,
        draft_tokens: int = 0,
        prefix_cache: bool = True,
    ) -> None:
        self.guides = guides
        self.model = model or VolatileModel()
        self.now_s = 1000.0
        self.steps: defaultdict[str, list[StepOutput]] = defaultdict(list)
        self.ended: list[str] = []
        self.engine = EngineCore(
            self.model,
            max_batched_tokens=max_batched_tokens,
            max_active=max_active,
            max_draft_tokens=draft_tokens,
            prefix_cache=prefix_cache,
            connect_masks=guides.connect,
            clock=lambda: self.now_s,
        )

    def add(self, *requests: GenerationRequest) -> None:
        for request in requests:
            self.engine.add(request)

    def turn(self) -> list[StepOutput]:
        """What the engine's loop does between two messages."""
        steps = self.engine.resume()
        if self.engine.has_work:
            steps += self.engine.step()
        for step in steps:
            self.steps[step.key].append(step)
        self.ended += [step.key for step in steps if step.is_final]
        return steps

    def run(self, *, limit: int = 3000) -> None:
        """Turns until all requests have ended or wait for masks that don't arrive."""
        for _ in range(limit):
            if not self.turn() and not self.engine.has_work:
                return
        raise AssertionError("the engine does not finish")

    def tokens(self, key: str) -> list[int]:
        return [token_id for step in self.steps[key] for token_id in step.token_ids]

    def end(self, key: str) -> StepOutput:
        *others, last = self.steps[key]
        assert last.is_final
        assert not any(step.is_final for step in others)
        return last

    def assert_empty(self) -> None:
        assert not self.engine.has_work
        assert self.engine.active_count == 0
        assert self.engine.cache_counts.used_share == 0
        self.guides.assert_closed()


def alone(request: GenerationRequest) -> list[StepOutput]:
    """Runs one request on its own engine, without drafts or delays, and returns its steps with one token each."""
    bench = Bench(FakeGuides())
    bench.add(request)
    bench.run()
    return bench.steps[request.key]


def content(steps: list[StepOutput]) -> tuple[object, ...]:
    """Returns all that a client sees of a request."""
    return (
        [token_id for step in steps for token_id in step.token_ids],
        [value for step in steps for value in step.logprobs],
        [top for step in steps for top in step.top_logprobs],
        [step.finish_reason for step in steps if step.is_final],
        [step.prompt_logprobs for step in steps if step.prompt_logprobs is not None],
    )


@st.composite
def some_requests(draw: st.DrawFn) -> list[GenerationRequest]:
    made = []
    for number in range(draw(st.integers(1, 6))):
        pattern = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6))
        sampling = SamplingParams(is_greedy=draw(st.booleans()), seed=number)
        request = make_request(
            str(number), tuple((pattern * 7)[: draw(st.integers(1, 40))]), draw(st.integers(1, 40)), sampling
        )
        has_logprobs = draw(st.booleans())
        request = replace(request, return_logprobs=has_logprobs, num_top_logprobs=2 * has_logprobs)
        request = replace(request, return_prompt_logprobs=has_logprobs and draw(st.booleans()))
        made.append(guided(request) if draw(st.integers(0, 3)) else request)
    return made


@settings(deadline=None)
@given(
    some_requests(),
    st.sampled_from([0, 14]),
    st.sampled_from([CAPACITY, CAPACITY * 10]),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([7, 64]),
    st.lists(st.integers(0, 5), max_size=60),
    st.sampled_from([0.0, 0.2]),
    st.booleans(),
)
def test_late_masks_change_nothing_about_any_request(
    requests: list[GenerationRequest],
    draft_tokens: int,
    capacity: int,
    max_active: int,
    max_batched_tokens: int,
    delays: list[int],
    turn_s: float,
    prefix_cache: bool,
) -> None:
    """Also if sequences lose their blocks and their slots while they wait."""
    bench = Bench(
        FakeGuides(delays=lambda address: delays[int(address) :]),
        VolatileModel(capacity=capacity),
        max_active=max_active,
        max_batched_tokens=max_batched_tokens,
        draft_tokens=draft_tokens,
        prefix_cache=prefix_cache,
    )
    bench.add(*requests)
    for _ in range(3000):
        bench.turn()
        bench.now_s += turn_s
        if len(bench.ended) == len(requests):
            break
    for request in requests:
        assert content(bench.steps[request.key]) == content(alone(request))
    bench.assert_empty()


def test_others_go_on_while_a_mask_is_missing() -> None:
    bench = Bench(FakeGuides(stopped=["slow"]))
    bench.add(guided(make_request("slow", max_tokens=5)), guided(make_request("quick", max_tokens=20)))
    bench.add(make_request("free", max_tokens=20))
    bench.run()
    assert bench.model.runs == 20
    assert [len(bench.tokens(key)) for key in ("slow", "quick", "free")] == [0, 20, 20]
    bench.guides.sources["slow"].go()
    bench.run()
    assert bench.tokens("slow") == [step.token_ids[0] for step in alone(guided(make_request("slow", max_tokens=5)))]
    bench.assert_empty()


def test_a_sequence_that_waits_is_no_work_and_names_its_descriptor() -> None:
    bench = Bench(FakeGuides(stopped=["slow"]))
    bench.add(guided(make_request("slow", max_tokens=5)))
    bench.turn()
    source = bench.guides.sources["slow"]
    states = [(bench.engine.has_work, bench.engine.stalled_descriptors, bench.engine.active_count)]
    source.go()
    assert [len(step.token_ids) for step in bench.engine.resume()] == [1]
    states.append((bench.engine.has_work, bench.engine.stalled_descriptors, bench.engine.active_count))
    assert states == [(False, [source.fileno()], 1), (True, [], 1)]


def test_masks_are_asked_for_when_a_request_starts_and_not_while_it_is_queued() -> None:
    """The first mask takes longest; it is made while the prompt is computed. A queued request has no connection."""
    bench = Bench(FakeGuides(), max_active=1, max_batched_tokens=8)
    bench.add(guided(make_request("first", REPETITIVE, 3)), guided(make_request("second", REPETITIVE, 3)))
    bench.turn()
    assert bench.tokens("first") == []
    assert bench.guides.sources.keys() == {"first"}
    assert bench.guides.sources["first"].questions == [((), ())]
    bench.run()
    assert len(bench.guides.sources["second"].questions) == 3
    bench.assert_empty()


def test_drafts_of_guided_text_are_accepted_with_the_masks_of_one_answer() -> None:
    request = guided(make_request("guided", REPETITIVE, 60))
    bench = Bench(FakeGuides(), draft_tokens=14)
    bench.add(request)
    bench.run()
    assert content(bench.steps["guided"]) == content(alone(request))
    assert len(bench.guides.sources["guided"].questions) == bench.model.runs < 60


def test_scoring_of_a_prompt_without_output_needs_no_mask() -> None:
    bench = Bench(FakeGuides())
    bench.add(replace(guided(make_request("scored", max_tokens=0)), return_prompt_logprobs=True, return_logprobs=True))
    bench.run()
    assert bench.end("scored").finish_reason is FinishReason.LENGTH
    assert bench.guides.sources == {}


# --- Slots and blocks ------------------------------------------------------------------------------------------------


def test_a_slot_is_kept_for_a_short_wait_and_given_to_others_after_a_longer_one() -> None:
    slow, waiting = guided(make_request("slow", max_tokens=4)), make_request("waiting", max_tokens=4)
    bench = Bench(FakeGuides(stopped=["slow"]), max_active=1)
    bench.add(slow, waiting)
    bench.turn()
    bench.now_s += 0.2
    assert not any(bench.turn() for _ in range(3))
    assert not bench.engine.has_work
    bench.now_s += 0.2
    bench.run()
    assert bench.end("waiting").finish_reason is FinishReason.LENGTH
    bench.guides.sources["slow"].go()
    bench.run()
    assert content(bench.steps["slow"]) == content(alone(slow))
    bench.assert_empty()


def test_a_sequence_that_gave_up_its_slot_is_the_next_to_start() -> None:
    bench = Bench(FakeGuides(stopped=["slow"]), max_active=1)
    bench.add(guided(make_request("slow", max_tokens=4)), *(make_request(str(n), max_tokens=4) for n in range(3)))
    bench.turn()
    bench.now_s += 0.3
    bench.turn()
    assert list(bench.steps) == ["0"]
    bench.guides.sources["slow"].go()
    bench.run()
    assert bench.ended == ["0", "slow", "1", "2"]
    bench.assert_empty()


def test_a_full_cache_takes_the_blocks_of_a_sequence_that_waits() -> None:
    model = VolatileModel(capacity=48)
    bench = Bench(FakeGuides(stopped=["slow"]), model)
    grows, slow = make_request("grows", (1, 2, 3), 40), guided(make_request("slow", REPETITIVE[:10], 8))
    bench.add(grows, slow)
    bench.run()
    assert bench.end("grows").finish_reason is FinishReason.LENGTH
    bench.guides.sources["slow"].go()
    bench.run()
    for request in (grows, slow):
        assert content(bench.steps[request.key]) == content(alone(request))
    bench.assert_empty()


def test_a_sequence_that_waits_loses_its_draft_and_no_token() -> None:
    guides = FakeGuides(lambda text: np.ones(VOCABULARY, dtype=np.bool_))
    bench = Bench(guides, max_active=1, draft_tokens=14, prefix_cache=False)
    request = guided(make_request("slow", REPETITIVE, 60))
    bench.add(request)
    while not guides.sources or len(guides.sources["slow"].questions[-1][1]) < 4:
        bench.turn()
    source = guides.sources["slow"]
    source.stop()
    bench.turn()
    bench.add(make_request("other", (5,), 3))
    bench.now_s += 1
    bench.run()
    assert bench.ended == ["other"]
    source.go()
    bench.run()
    assert content(bench.steps["slow"]) == content(alone(replace(request, guide=None)))
    bench.assert_empty()


# --- Ends ------------------------------------------------------------------------------------------------------------


def stalled(bench: Bench) -> None:
    """Brings the request into the state in which it waits with its slot."""
    bench.turn()
    assert bench.engine.stalled_descriptors
    assert bench.engine.active_count == 1


def parked(bench: Bench) -> None:
    """Brings the request into the state in which it waits without a slot, while another one has it."""
    stalled(bench)
    bench.now_s += 1
    bench.add(make_request("other", max_tokens=30))
    bench.turn()
    bench.turn()
    assert bench.tokens("other")


@pytest.mark.parametrize("state", [lambda bench: None, stalled, parked], ids=["queued", "stalled", "parked"])
def test_a_guided_request_can_be_cancelled_in_every_state(state: Callable[[Bench], None]) -> None:
    bench = Bench(FakeGuides(stopped=["slow"]), max_active=1)
    bench.add(guided(make_request("slow", max_tokens=5)))
    state(bench)
    assert bench.engine.cancel("slow") == StepOutput("slow", finish_reason=FinishReason.CANCELLED)
    assert bench.engine.cancel("slow") is None
    bench.run()
    assert bench.steps["slow"] == []
    bench.assert_empty()


@pytest.mark.parametrize("state", [stalled, parked])
def test_a_request_whose_masks_do_not_arrive_ends_with_an_error_after_10_s(state: Callable[[Bench], None]) -> None:
    bench = Bench(FakeGuides(stopped=["slow"]), max_active=1)
    bench.add(guided(make_request("slow", max_tokens=5)))
    state(bench)
    bench.now_s += 8.5
    bench.run()
    assert bench.steps["slow"] == []
    bench.now_s += 2
    bench.run()
    error = bench.end("slow").error
    assert error is not None
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)
    assert "took more than 10 s" in error.message
    bench.assert_empty()


@pytest.mark.parametrize("is_stopped", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("failure", "code", "param"),
    [
        (GuideError("too many states."), ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM),
        (GuidesUnavailableError("Structured output is restarting."), ErrorCode.SERVICE_UNAVAILABLE, None),
    ],
    ids=["the guide's fault", "the server's fault"],
)
def test_a_guide_that_can_not_be_followed_any_further_fails_its_request_with_the_reason(
    failure: Exception, code: ErrorCode, param: str | None, is_stopped: bool
) -> None:
    def allow(text: tuple[int, ...]) -> Mask:
        if len(text) == 2:
            raise failure
        return every_seventh_forbidden(text)

    bench = Bench(FakeGuides(allow, stopped=["guided"] if is_stopped else []))
    other = make_request("other", max_tokens=9)
    bench.add(guided(make_request("guided", max_tokens=9)), other)
    bench.run()
    if is_stopped:
        bench.guides.sources["guided"].go()
    bench.run()
    error = bench.end("guided").error
    assert error is not None
    assert (error.code, error.param) == (code, param)
    assert str(failure) in error.message
    assert (error.retry_after_s is not None) == isinstance(failure, GuidesUnavailableError)
    assert len(bench.tokens("guided")) == 2
    assert bench.steps["other"] == alone(other)
    bench.assert_empty()


def test_a_request_without_a_free_descriptor_for_its_guide_is_asked_to_retry() -> None:
    guides = FakeGuides()

    def connect(address: str) -> None:
        raise OSError("Too many open files")

    guides.connect = connect  # type: ignore[assignment,method-assign]
    bench = Bench(guides)
    bench.add(guided(make_request("guided")), make_request("other", max_tokens=3))
    bench.run()
    error = bench.end("guided").error
    assert error is not None
    assert error.code is ErrorCode.SERVICE_UNAVAILABLE
    assert bench.end("other").finish_reason is FinishReason.LENGTH
