"""Engine processes that die, fail to restart or can't start at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import cast

import pytest

from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError, PyTorchModel
from llm_pipeline.executors.cpu.engine_process import reap
from llm_pipeline.executors.cpu.load import load_executor
from llm_pipeline.executors.port import EngineStartError
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason
from llm_pipeline.runtime.settings import PipelineSettings
from tests.support.cpu_executors import MAX_ACTIVE, RestartableEngine
from tests.support.executor_rules import DEADLINE_S, RuleBench
from tests.support.sample_requests import make_manifest
from tests.support.waiting import wait_until


def submit_after_restart(bench: RuleBench) -> int:
    """Submits until the engine accepts, as a client that retries would, and returns the request's number."""
    numbers: list[int] = []
    rejections: list[PipelineError] = []

    def is_accepted() -> bool:
        try:
            numbers.append(bench.submit(max_tokens=2))
        except PipelineError as error:
            rejections.append(error)
        return bool(numbers)

    wait_until(is_accepted, limit_s=DEADLINE_S, what="a restart of the engine")
    assert {error.code for error in rejections} <= {ErrorCode.ENGINE_UNAVAILABLE}
    assert all(error.retry_after_s for error in rejections)
    return numbers[0]


def test_killed_engine_fails_its_requests_at_once_and_restarts(restartable: RestartableEngine) -> None:
    bench = restartable.bench
    numbers = [bench.submit() for _ in range(MAX_ACTIVE + 2)]
    bench.recorder.wait_for_token(numbers[0])
    restartable.kill()
    killed = time.monotonic()
    for number in numbers:
        error = bench.end_of(number).error
        assert error is not None
        assert error.code is ErrorCode.ENGINE_UNAVAILABLE
    assert time.monotonic() - killed < 1
    with pytest.raises(PipelineError) as caught:
        bench.submit()
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    assert bench.end_of(submit_after_restart(bench)).finish_reason is FinishReason.LENGTH
    assert bench.recorder.violations == []


def test_engine_that_hangs_with_work_is_reported_as_stalled(restartable: RestartableEngine) -> None:
    bench = restartable.bench
    assert bench.executor.stats().stalled_s == 0, "no work"
    number = bench.submit(max_tokens=200)
    bench.recorder.wait_for_token(number)
    os.kill(restartable.processes[-1].pid, signal.SIGSTOP)
    wait_until(lambda: bench.executor.stats().stalled_s > 0.5, limit_s=DEADLINE_S, what="a stall")
    os.kill(restartable.processes[-1].pid, signal.SIGCONT)
    bench.end_of(number)
    assert bench.executor.stats().stalled_s == 0


def test_close_does_not_wait_for_an_engine_that_loads(restartable: RestartableEngine) -> None:
    restartable.kill()
    wait_until(lambda: len(restartable.processes) == 2, limit_s=DEADLINE_S, what="a restart")
    started = time.monotonic()
    restartable.bench.executor.close()
    assert time.monotonic() - started < 1.5
    assert not restartable.processes[-1].is_running


def test_restart_that_fails_with_an_unexpected_error_is_retried(restartable: RestartableEngine) -> None:
    restartable.failures = [subprocess.TimeoutExpired("engine", 5), RuntimeError("a bug")]
    restartable.kill()
    wait_until(lambda: len(restartable.processes) == 2, limit_s=DEADLINE_S, what="a restart")
    assert restartable.failures == []
    assert restartable.bench.end_of(submit_after_restart(restartable.bench)).finish_reason is FinishReason.LENGTH


def test_process_that_does_not_end_is_left_alone() -> None:
    """It hangs inside the kernel."""

    class Unkillable:
        pid = 1

        def terminate(self) -> None: ...
        def kill(self) -> None: ...
        def wait(self, timeout: float) -> int:
            raise subprocess.TimeoutExpired("engine", timeout)

    assert reap(cast("subprocess.Popen[bytes]", Unkillable()), timeout_s=5) is None


def test_kv_cache_below_one_context_stops_the_start_with_the_required_size(
    settings: PipelineSettings, engine_dir: Path
) -> None:
    manifest = EngineManifest.load(engine_dir)
    with pytest.raises(EngineStartError, match=r"fewer than the context of 8192\. .* CPU_KV_CACHE_GIB .* 0\.36"):
        load_executor(settings, manifest, lambda step: None)


def test_changed_file_of_the_engine_stops_the_start(
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
        load_executor(tampered, EngineManifest.load(copy), lambda step: None)


def test_a_directory_for_another_runtime_stops_the_start_before_its_files_are_read(settings: PipelineSettings) -> None:
    model = PyTorchModel(
        architecture="LlamaForCausalLM",
        tensorrt_llm="1.2.1",
        sm=90,
        tp=1,
        pp=1,
        max_batch_size=8,
        max_num_tokens=8192,
        is_linked=True,
    )
    manifest = make_manifest().model_copy(update={"pytorch": model})
    with pytest.raises(ManifestError, match=r"for TensorRT-LLM's PyTorch runtime\. Serve it with .*_pytorch\."):
        load_executor(settings, manifest, lambda step: None)
