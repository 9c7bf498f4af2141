"""The CPU executor on the real engine: the port's rules, the reference tokens under load, and invalid requests.

The KV cache is far too small for all requests together, so that they queue and preempt each other all the time.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from build_engine.cpu.reference import ReferenceCase
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineManifest
from llm_pipeline.guides.compilers.llguidance_compiler import ConstraintMatcher, GuideCompiler
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GUIDE_PARAM, FinishReason, Guide, GuideType, SamplingParams
from llm_pipeline.runtime.settings import PipelineSettings
from tests.support.cpu_executors import CONTEXT, MAX_ACTIVE, RestartableEngine
from tests.support.executor_rules import CLOSING_RULES, RULES, RuleBench
from tests.support.fake_masks import guided
from tests.support.mask_server import serving_masks
from tests.support.sample_requests import make_request

TOKENS = 12  # of each reference completion; the first ones already depend on the whole prompt


@pytest.mark.parametrize("rule", RULES)
def test_executor_rules(bench: RuleBench, rule: Callable[[RuleBench], None]) -> None:
    rule(bench)


@pytest.mark.parametrize("rule", CLOSING_RULES)
def test_executor_closing_rules(restartable: RestartableEngine, rule: Callable[[RuleBench], None]) -> None:
    rule(restartable.bench)


# --- Tokens ----------------------------------------------------------------------------------------------------------


def test_greedy_tokens_are_those_of_the_reference(bench: RuleBench, cases: list[ReferenceCase]) -> None:
    number = bench.submit(max_tokens=TOKENS, prompt_ids=tuple(cases[0].prompt_ids))
    bench.end_of(number)
    assert bench.recorder.token_ids(number) == cases[0].greedy_ids[:TOKENS]


def test_greedy_tokens_are_the_same_in_a_batch_beyond_the_kv_cache(
    bench: RuleBench, cases: list[ReferenceCase]
) -> None:
    submitted = [(case, bench.submit(max_tokens=TOKENS, prompt_ids=tuple(case.prompt_ids))) for case in cases * 3]
    for case, number in submitted:
        bench.end_of(number)
        assert bench.recorder.token_ids(number) == case.greedy_ids[:TOKENS]


def test_requests_far_beyond_the_kv_cache_all_finish(bench: RuleBench) -> None:
    """Four active requests outgrow it while they decode, so the youngest are preempted and computed again."""
    numbers = [bench.submit(max_tokens=40, prompt_ids=tuple(range(10, 105))) for _ in range(MAX_ACTIVE + 1)]
    completions = []
    for number in numbers:
        assert bench.end_of(number).finish_reason is FinishReason.LENGTH
        completions.append(bench.recorder.token_ids(number))
    assert len(completions[0]) == 40
    assert completions == [completions[0]] * len(numbers)


def test_seed_gives_the_same_tokens_alone_and_in_a_batch(bench: RuleBench) -> None:
    def submit(seed: int) -> int:
        sampling = SamplingParams(is_greedy=False, temperature=1.5, seed=seed)
        return bench.submit(prompt_ids=(504, 3575, 314), max_tokens=8, sampling=sampling)

    alone = submit(7)
    bench.end_of(alone)
    batch = [submit(7), *(submit(seed) for seed in range(6))]
    for number in batch:
        bench.end_of(number)
    assert bench.recorder.token_ids(batch[0]) == bench.recorder.token_ids(alone)
    assert bench.recorder.token_ids(batch[1]) != bench.recorder.token_ids(alone)


def test_prompt_logprobs_come_with_the_first_token(bench: RuleBench) -> None:
    request = make_request(prompt_ids=(504, 3575, 314), max_tokens=3)
    number = bench.submit_request(
        replace(request, return_logprobs=True, num_top_logprobs=2, return_prompt_logprobs=True)
    )
    bench.end_of(number)
    first, *others = bench.recorder.outputs(number)
    assert first.prompt_logprobs is not None
    assert len(first.prompt_logprobs.values) == 2
    assert [output.prompt_logprobs for output in others] == [None] * 2
    assert all(len(output.logprobs) == len(output.top_logprobs) == 1 for output in (first, *others))
    bench.end(number)


def test_prompt_logprobs_without_a_token_come_with_the_end(bench: RuleBench) -> None:
    request = make_request(prompt_ids=(504, 3575, 314), max_tokens=0)
    number = bench.submit_request(replace(request, return_logprobs=True, return_prompt_logprobs=True))
    last = bench.end_of(number)
    assert (last.token_ids, last.finish_reason) == ((), FinishReason.LENGTH)
    assert last.prompt_logprobs is not None
    assert len(last.prompt_logprobs.values) == 2
    bench.end(number)


# --- Guides ----------------------------------------------------------------------------------------------------------


def matcher(engine_dir: Path, expression: str) -> ConstraintMatcher:
    manifest = EngineManifest.load(engine_dir)
    (end_id, *_), vocab_size = manifest.tokens.eos, manifest.limits.vocab_size
    compiler = GuideCompiler(engine_dir / TOKENIZER_NAME, vocab_size=vocab_size, end_id=end_id)
    return compiler.compile(Guide(GuideType.REGEX, expression))


class SlowMaker:
    """Makes masks, each of which takes longer than the watchdog of the test waits."""

    def __init__(self, maker: ConstraintMatcher) -> None:
        self._maker = maker

    def copy(self) -> SlowMaker:
        return SlowMaker(self._maker.copy())

    def advance(self, token_ids: Sequence[int]) -> None:
        self._maker.advance(token_ids)

    def masks(self, draft: Sequence[int], is_late: Callable[[], bool]) -> list[bytes]:
        time.sleep(5)
        return self._maker.masks(draft, is_late)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="m-") as name:
        yield Path(name)


def test_guided_requests_follow_their_guide_beside_others(
    bench: RuleBench, cases: list[ReferenceCase], engine_dir: Path, directory: Path
) -> None:
    """They preempt each other, because the KV cache is small."""
    case, expression = cases[0], "([a-z]{3,5}, ){6}[0-9]{4}"
    request = replace(make_request(prompt_ids=tuple(case.prompt_ids), max_tokens=60), stop_token_ids=(2,))
    with serving_masks(matcher(engine_dir, expression), directory) as address:
        numbers = [bench.submit_request(guided(request, address)) for _ in range(MAX_ACTIVE + 1)]
        free = bench.submit(max_tokens=TOKENS, prompt_ids=tuple(case.prompt_ids))
        ends = [bench.end_of(number).finish_reason for number in numbers]
    assert ends == [FinishReason.STOP] * len(numbers)
    completions = [bench.recorder.token_ids(number) for number in numbers]
    assert completions == [completions[0]] * len(numbers)
    text = Tokenizer.from_file(str(engine_dir / TOKENIZER_NAME)).decode(completions[0])
    assert re.fullmatch(expression, text)
    assert bench.recorder.token_ids(free) == case.greedy_ids[:TOKENS]


def test_slow_mask_is_not_taken_for_a_hung_engine(
    settings: PipelineSettings, manifest: EngineManifest, engine_dir: Path, directory: Path
) -> None:
    engine = RestartableEngine(settings.model_copy(update={"cpu_hang_timeout_s": 2.5}), manifest)
    with serving_masks(SlowMaker(matcher(engine_dir, "[ab]+")), directory) as address:
        number = engine.bench.submit_request(guided(make_request(prompt_ids=(5, 6), max_tokens=1), address))
        assert engine.bench.end_of(number).finish_reason is FinishReason.LENGTH
    engine.bench.executor.close()
    assert len(engine.processes) == 1


# --- Requests that the engine can't compute -------------------------------------------------------------------------


def test_guide_whose_process_has_ended_fails_its_request_with_400(bench: RuleBench, tmp_path: Path) -> None:
    request = guided(make_request(prompt_ids=(5, 6), max_tokens=8), str(tmp_path / "ended"))
    error = bench.end_of(bench.submit_request(request)).error
    assert error is not None
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)
    assert error.message.startswith("The output could not be constrained to the requested format: ")
    assert bench.end_of(bench.submit(max_tokens=1)).finish_reason is FinishReason.LENGTH


def test_guided_request_without_a_process_for_its_guide_is_an_internal_error(bench: RuleBench) -> None:
    with pytest.raises(PipelineError) as caught:
        bench.submit_request(replace(guided(make_request(prompt_ids=(5, 6))), guide_address=None))
    assert caught.value.code is ErrorCode.INTERNAL_ERROR


@pytest.mark.parametrize(
    ("prompt_ids", "max_tokens"),
    [((), 5), ((-1,), 5), ((10**6,), 5), ((1,) * CONTEXT, 5), ((1,), CONTEXT), ((1,), 0)],
    ids=["no ids", "negative id", "id past the vocabulary", "long prompt", "long completion", "no completion"],
)
def test_invalid_request_is_rejected_before_it_reaches_the_engine(
    bench: RuleBench, prompt_ids: tuple[int, ...], max_tokens: int
) -> None:
    """Clients of Triton can send to decode without preprocess."""
    with pytest.raises(PipelineError) as caught:
        bench.submit_request(make_request(prompt_ids=prompt_ids, max_tokens=max_tokens))
    assert caught.value.code is ErrorCode.VALUE_OUT_OF_RANGE
