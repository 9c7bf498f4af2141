"""The CPU executor on the real engine: right tokens under pressure, and every way in which the engine can fail.

The KV cache is far smaller than the requests need together, so that they queue and preempt each other all the time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import pytest

from build_engine.cpu.reference import ReferenceCase, reference_cases
from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError
from llm_pipeline.executors.cpu import executor as cpu
from llm_pipeline.executors.cpu.executor import CpuExecutor, EngineStartError
from llm_pipeline.executors.port import OutputSink
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GUIDE_PARAM, FinishReason, Guide, GuideType, SamplingParams
from llm_pipeline.runtime.guided_decoding import check_guide
from llm_pipeline.runtime.settings import PipelineSettings
from tests.support.executor_rules import CLOSING_RULES, DEADLINE_S, RULES, RuleBench
from tests.support.sample_requests import make_request

CONTEXT = 256
KV_CACHE_GIB = 0.02  # some 450 tokens
MAX_ACTIVE = 4
TOKENS = 12  # of each reference answer; the first ones already depend on the whole prompt

Create = Callable[[OutputSink], CpuExecutor]


@pytest.fixture(scope="module")
def manifest(engine_dir: Path) -> EngineManifest:
    """The real engine's, with a context that fits into the small cache."""
    manifest = EngineManifest.load(engine_dir)
    limits = manifest.limits.model_copy(update={"context_length": CONTEXT})
    return manifest.model_copy(update={"limits": limits})


@pytest.fixture(scope="module")
def settings(engine_dir: Path) -> PipelineSettings:
    return PipelineSettings(engine_dir=engine_dir, cpu_kv_cache_gib=KV_CACHE_GIB, cpu_max_active=MAX_ACTIVE)


@pytest.fixture(scope="module")
def create(settings: PipelineSettings, manifest: EngineManifest) -> Create:
    return lambda sink: CpuExecutor(settings, manifest, sink)


@pytest.fixture(scope="module")
def bench(create: Create) -> Iterator[RuleBench]:
    """An engine that all tests share that leave it as it was; a load takes some seconds."""
    bench = RuleBench(create, long=CONTEXT - 20, max_active=MAX_ACTIVE)
    yield bench
    bench.executor.close()


@pytest.fixture
def own_bench(create: Create) -> Iterator[RuleBench]:
    """An engine that the test may break."""
    bench = RuleBench(create, long=CONTEXT - 20, max_active=MAX_ACTIVE)
    yield bench
    bench.executor.close()


@pytest.fixture(scope="module")
def cases(manifest: EngineManifest) -> list[ReferenceCase]:
    cases = reference_cases(manifest.source.sha256)
    assert cases
    return cases


@pytest.mark.parametrize("rule", RULES)
def test_the_executors_rules(bench: RuleBench, rule: Callable[[RuleBench], None]) -> None:
    rule(bench)


@pytest.mark.parametrize("rule", CLOSING_RULES)
def test_the_executors_closing_rules(own_bench: RuleBench, rule: Callable[[RuleBench], None]) -> None:
    rule(own_bench)


# --- Right tokens ----------------------------------------------------------------------------------------------------


def test_greedy_tokens_are_those_of_the_reference(bench: RuleBench, cases: list[ReferenceCase]) -> None:
    key = bench.submit(max_tokens=TOKENS, prompt_ids=tuple(cases[0].prompt_ids))
    bench.end_of(key)
    assert bench.recorder.token_ids(key) == cases[0].greedy_ids[:TOKENS]


def test_greedy_tokens_are_the_same_in_a_crowd_that_does_not_fit(bench: RuleBench, cases: list[ReferenceCase]) -> None:
    crowd = [(case, bench.submit(max_tokens=TOKENS, prompt_ids=tuple(case.prompt_ids))) for case in cases * 3]
    for case, key in crowd:
        bench.end_of(key)
        assert bench.recorder.token_ids(key) == case.greedy_ids[:TOKENS]


def test_requests_far_beyond_the_kv_cache_all_finish(bench: RuleBench) -> None:
    """Four active requests outgrow it while they decode, so the youngest give way and come back."""
    keys = [bench.submit(max_tokens=40, prompt_ids=tuple(range(10, 105))) for _ in range(MAX_ACTIVE + 1)]
    answers = []
    for key in keys:
        assert bench.end_of(key).finish_reason is FinishReason.LENGTH
        answers.append(bench.recorder.token_ids(key))
    assert len(answers[0]) == 40
    assert answers == [answers[0]] * len(keys)


def test_a_seed_gives_the_same_tokens_alone_and_in_a_crowd(bench: RuleBench) -> None:
    def submit(name: str, seed: int) -> str:
        sampling = SamplingParams(is_greedy=False, temperature=1.5, seed=seed)
        bench.executor.submit(make_request(name, (504, 3575, 314), 8, sampling))
        return name

    bench.end_of(submit("alone", 7))
    crowd = [submit("in a crowd", 7)] + [submit(f"other {seed}", seed) for seed in range(6)]
    for key in crowd:
        bench.end_of(key)
    assert bench.recorder.token_ids("in a crowd") == bench.recorder.token_ids("alone")
    assert bench.recorder.token_ids("other 1") != bench.recorder.token_ids("alone")


# --- Engines that die or can not start -------------------------------------------------------------------------------


def kill_engine(bench: RuleBench) -> None:
    assert isinstance(bench.executor, CpuExecutor)
    os.kill(bench.executor._process.pid, signal.SIGKILL)


def submit_when_back(bench: RuleBench) -> str:
    """Submit as a client that retries would, until the engine takes it."""
    keys: list[str] = []
    refusals: list[PipelineError] = []

    def is_taken() -> bool:
        try:
            keys.append(bench.submit(max_tokens=2))
        except PipelineError as error:
            refusals.append(error)
        return bool(keys)

    wait_until(is_taken)
    assert {error.code for error in refusals} == {ErrorCode.ENGINE_UNAVAILABLE}
    assert all(error.retry_after_s for error in refusals)
    return keys[0]


def wait_until(is_true: Callable[[], bool]) -> None:
    """A poll with a deadline, for what nothing announces."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_killed_engine_fails_its_requests_at_once_and_comes_back(own_bench: RuleBench) -> None:
    keys = [own_bench.submit() for _ in range(MAX_ACTIVE + 2)]
    own_bench.recorder.wait_for_token(keys[0])
    kill_engine(own_bench)
    killed = time.monotonic()
    for key in keys:
        error = own_bench.end_of(key).error
        assert error is not None
        assert error.code is ErrorCode.ENGINE_UNAVAILABLE
    assert time.monotonic() - killed < 1
    assert own_bench.end_of(submit_when_back(own_bench)).finish_reason is FinishReason.LENGTH
    assert own_bench.recorder.violations == []
    # Killed again, and closed while the next one loads: nobody waits for that load.
    kill_engine(own_bench)
    wait_until(lambda: is_loading(own_bench))
    started = time.monotonic()
    own_bench.executor.close()
    assert time.monotonic() - started < 1.5
    assert not is_loading(own_bench)


def test_a_restart_that_fails_in_a_way_nobody_expects_is_tried_again(
    own_bench: RuleBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(own_bench.executor, CpuExecutor)
    start, failures = own_bench.executor._start, iter([subprocess.TimeoutExpired("engine", 5), RuntimeError("a bug")])

    def fail_twice() -> Connection:
        if (failure := next(failures, None)) is not None:
            raise failure
        return start()

    monkeypatch.setattr(own_bench.executor, "_start", fail_twice)
    monkeypatch.setattr(cpu, "_RESTART_PAUSES_S", (0.05,))
    kill_engine(own_bench)
    wait_until(lambda: is_without_engine(own_bench))
    assert own_bench.end_of(submit_when_back(own_bench)).finish_reason is FinishReason.LENGTH


def test_a_process_that_can_not_be_ended_is_left_alone() -> None:
    """As one that hangs inside the kernel."""

    class Immortal:
        pid = 1

        def terminate(self) -> None: ...
        def kill(self) -> None: ...
        def wait(self, timeout: float) -> int:
            raise subprocess.TimeoutExpired("engine", timeout)

    assert cpu._reap(cast("subprocess.Popen[bytes]", Immortal())) is None


def is_without_engine(bench: RuleBench) -> bool:
    assert isinstance(bench.executor, CpuExecutor)
    return bench.executor._connection is None


def is_loading(bench: RuleBench) -> bool:
    assert isinstance(bench.executor, CpuExecutor)
    executor = bench.executor
    return executor._connection is None and executor._process.poll() is None


def test_a_kv_cache_below_one_context_stops_the_start_and_says_what_it_takes(
    settings: PipelineSettings, engine_dir: Path
) -> None:
    manifest = EngineManifest.load(engine_dir)
    with pytest.raises(EngineStartError, match=r"fewer than the context of 8192\. .* CPU_KV_CACHE_GIB .* 0\.36"):
        CpuExecutor(settings, manifest, lambda steps: None)


@pytest.mark.parametrize(
    "guide",
    [
        Guide(GuideType.JSON_SCHEMA, '{"$ref": "#"}'),
        Guide(GuideType.EBNF_GRAMMAR, "root ::= " + " | ".join(f'"{number}"' for number in range(6000))),
    ],
    ids=["a schema that is itself", "too many alternatives"],
)
def test_a_guide_that_passes_the_check_and_can_not_be_followed_is_no_fault_of_ours(
    bench: RuleBench, guide: Guide
) -> None:
    check_guide(guide)
    key = f"guided by {guide.type}"
    bench.executor.submit(replace(make_request(key, (5, 6), max_tokens=8, stop_token_ids=(2,)), guide=guide))
    error = bench.end_of(key).error
    assert error is not None
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)
    assert error.message.startswith("The guide can't be followed: ")
    assert bench.end_of(bench.submit(max_tokens=1)).finish_reason is FinishReason.LENGTH


def test_a_file_that_is_not_what_was_built_stops_the_start(
    tmp_path: Path, settings: PipelineSettings, engine_dir: Path
) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(engine_dir, copy, copy_function=os.link)
    tokenizer = copy / "tokenizer.json"
    content = tokenizer.read_bytes()
    tokenizer.unlink()
    tokenizer.write_bytes(content.replace(b"a", b"b", 1))
    tampered = settings.model_copy(update={"engine_dir": copy})
    with pytest.raises(ManifestError, match=r"tokenizer\.json .* has changed since the build"):
        CpuExecutor(tampered, EngineManifest.load(copy), lambda steps: None)


@pytest.mark.parametrize(
    ("prompt_ids", "max_tokens"),
    [((), 5), ((-1,), 5), ((10**6,), 5), ((1,) * CONTEXT, 5), ((1,), CONTEXT), ((1,), 0)],
    ids=["no ids", "negative id", "id past the vocabulary", "long prompt", "long answer", "no answer"],
)
def test_a_request_that_came_past_preprocess_is_refused_before_it_reaches_the_engine(
    bench: RuleBench, prompt_ids: tuple[int, ...], max_tokens: int
) -> None:
    with pytest.raises(PipelineError) as refused:
        bench.executor.submit(make_request(key="unchecked", prompt_ids=prompt_ids, max_tokens=max_tokens))
    assert refused.value.code is ErrorCode.VALUE_OUT_OF_RANGE
