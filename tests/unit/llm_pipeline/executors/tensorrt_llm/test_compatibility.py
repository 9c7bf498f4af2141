"""What is refused at load, in one sentence: an engine, a machine and settings that do not fit each other."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError
from llm_pipeline.engine_files.trtllm_config import EngineConfig
from llm_pipeline.executors.port import create_executor
from llm_pipeline.protocol.messages import FinishReason
from llm_pipeline.runtime.settings import PipelineSettings
from tests.fakes.gpu_engine import make_gpu_engine
from tests.support.sample_requests import make_manifest, make_request
from tests.support.trtllm_bench import TrtllmBench, trtllm_bench

CreateBench = Callable[..., TrtllmBench]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[CreateBench]:
    with trtllm_bench(tmp_path) as create:
        yield create


def refusal(bench: CreateBench, **arguments: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        bench(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def build_config(**values: Any) -> dict[str, Any]:
    limits = {"max_batch_size": 4, "max_seq_len": 64, "max_num_tokens": 64, "kv_cache_type": "PAGED"}
    return {"build_config": {**limits, **values}}


def test_an_engine_of_another_sm(bench: CreateBench) -> None:
    message = refusal(bench, engine={"sm": 90}, script={"sms": [80]})
    assert "SM 90" in message
    assert "SM 80" in message


def test_one_gpu_of_another_kind_among_several(bench: CreateBench) -> None:
    assert "CUDA_VISIBLE_DEVICES" in refusal(bench, script={"sms": [90, 89]})


@pytest.mark.parametrize("sm", [80, 86, 89, 90, 100, 120])
def test_the_same_sm_is_accepted(bench: CreateBench, sm: int) -> None:
    made = bench(engine={"sm": sm}, script={"sms": [sm]})
    assert made.end_of(make_request(max_tokens=1)).finish_reason is FinishReason.LENGTH


def test_no_gpu(bench: CreateBench) -> None:
    assert "No GPU" in refusal(bench, script={"sms": []})


def test_an_engine_of_another_version(bench: CreateBench) -> None:
    message = refusal(bench, engine={"version": "1.2.0"}, script={"version": "1.2.1"})
    assert "1.2.0" in message
    assert "1.2.1" in message


@pytest.mark.parametrize("version", ["0.21.0", "1.3.0rc3", "2.0.0", "unknown"])
def test_a_version_that_the_executor_is_not_written_for(bench: CreateBench, version: str) -> None:
    assert "is written for 1.0" in refusal(bench, engine={"version": version}, script={"version": version})


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0", "1.2.0rc8", "1.2.1"])
def test_a_version_that_the_executor_is_written_for(bench: CreateBench, version: str) -> None:
    bench(engine={"version": version}, script={"version": version})


@pytest.mark.parametrize(
    ("engine", "settings", "says"),
    [
        ({"tp": 2}, {}, "Start 2 with mpirun"),
        ({"tp": 2, "pp": 2}, {"ompi_comm_world_size": 2}, "for 4 GPUs (tp 2 x pp 2) and runs as 2 processes"),
        ({}, {"ompi_comm_world_size": 2}, "for 1 GPUs"),
        ({"tp": 2}, {"trtllm_parallel_mode": "orchestrator", "ompi_comm_world_size": 2}, "starts its own workers"),
        ({"tp": 2}, {"trtllm_parallel_mode": "orchestrator"}, "TRTLLM_WORKER_PATH"),
        ({"tp": 2}, {"ompi_comm_world_size": 2, "ompi_comm_world_local_size": 2}, "needs 2 GPUs on this machine"),
    ],
    ids=["one process", "too few", "too many", "mpirun and orchestrator", "no worker program", "too few GPUs"],
)
def test_a_world_of_another_size(
    bench: CreateBench, engine: dict[str, Any], settings: dict[str, Any], says: str
) -> None:
    assert says in refusal(bench, engine=engine, **settings)


def test_an_orchestrator_with_too_few_gpus(bench: CreateBench, tmp_path: Path) -> None:
    worker = tmp_path / "worker"
    worker.touch()
    settings = {"trtllm_parallel_mode": "orchestrator", "trtllm_worker_path": worker}
    assert "needs 4 GPUs" in refusal(bench, engine={"tp": 4}, script={"sms": [90, 90]}, **settings)


def test_leader_mode_with_as_many_processes_as_the_engine_wants(bench: CreateBench) -> None:
    made = bench(engine={"tp": 2}, script={"sms": [90, 90]}, ompi_comm_world_size=2, ompi_comm_world_local_size=2)
    assert made.end_of(make_request(max_tokens=1)).finish_reason is FinishReason.LENGTH


def changed_engine(folder: Path, name: str, content: bytes | None) -> PipelineSettings:
    make_gpu_engine(folder / "engine")
    if content is None:
        (folder / "engine" / name).unlink()
    else:
        (folder / "engine" / name).write_bytes(content)
    return PipelineSettings(engine_dir=folder / "engine", executor="tensorrt_llm")


@pytest.mark.parametrize(
    ("content", "check", "rank", "is_refused"),
    [
        (None, "sha256", 0, True),
        (None, "size", 0, True),
        (b"NO ENGINE", "sha256", 0, True),
        (b"NO ENGINE", "size", 0, False),
        (b"NO ENGINE", "sha256", 1, False),
        (b"longer than it was", "size", 0, True),
    ],
    ids=["gone", "gone, by size", "changed", "changed, by size", "changed, on another rank", "longer, by size"],
)
def test_a_file_that_is_not_what_was_built(
    tmp_path: Path, content: bytes | None, check: str, rank: int, is_refused: bool
) -> None:
    from llm_pipeline.executors.tensorrt_llm.compatibility import check_engine

    plain = changed_engine(tmp_path, "rank0.engine", content)
    settings = plain.model_copy(update={"trtllm_check_files": check, "ompi_comm_world_rank": rank})
    manifest, config = EngineManifest.load(settings.engine_dir), EngineConfig.load(settings.engine_dir)
    if not is_refused:
        check_engine(settings, manifest, config)
        return
    with pytest.raises(ManifestError, match=r"rank0\.engine"):
        check_engine(settings, manifest, config)


def test_an_engine_for_cpus(bench: CreateBench, tmp_path: Path) -> None:
    settings = changed_engine(tmp_path, "unrelated", b"")
    with pytest.raises(ManifestError, match="EXECUTOR=cpu"):
        create_executor(settings, make_manifest(), lambda steps: None)


@pytest.mark.parametrize("content", [None, b"{}", b"not json"], ids=["missing", "empty", "not json"])
def test_a_config_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    settings = changed_engine(tmp_path, "config.json", content)
    with pytest.raises(ManifestError, match=r"config\.json"):
        create_executor(settings, EngineManifest.load(settings.engine_dir), lambda steps: None)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"version": "1.1.0"}, "TensorRT-LLM"),
        ({"pretrained_config": {"vocab_size": 1000, "mapping": {"tp_size": 2}}}, "GPUs"),
        ({"pretrained_config": {"vocab_size": 999}}, "vocabulary"),
        (build_config(max_seq_len=32), "context"),
    ],
    ids=["version", "world size", "vocabulary", "context"],
)
def test_a_config_and_a_manifest_of_different_engines(bench: CreateBench, config: dict[str, Any], what: str) -> None:
    message = refusal(bench, engine={"config": config, "max_seq_len": 64})
    assert "different engines" in message
    assert what in message


@pytest.mark.parametrize(
    "config",
    [build_config(kv_cache_type="CONTINUOUS"), build_config(plugin_config={"remove_input_padding": False})],
    ids=["continuous KV cache", "padded input"],
)
def test_an_engine_that_can_not_batch_in_flight(bench: CreateBench, config: dict[str, Any]) -> None:
    assert "in-flight batching" in refusal(bench, engine={"config": config, "max_seq_len": 64})


def test_without_tensorrt_llm_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "tensorrt_llm":
            raise ImportError("libmpi.so.40: cannot open shared object file")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    settings = changed_engine(tmp_path, "unrelated", b"")
    with pytest.raises(ManifestError, match=r"libmpi\.so\.40.*triton-completions\[tensorrt-llm\]"):
        create_executor(settings, EngineManifest.load(settings.engine_dir), lambda steps: None)


def test_what_build_engine_checks_in_config_json_is_read_here_too(tmp_path: Path) -> None:
    """The same file by the two sides: upstream's keys, not ours."""
    make_gpu_engine(tmp_path, tp=2, pp=2, max_seq_len=4096, max_num_tokens=2048, vocab_size=32000)
    config = EngineConfig.load(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert set(document) == {"version", "pretrained_config", "build_config"}
    assert (config.world_size, config.build_config.max_seq_len, config.build_config.max_num_tokens) == (4, 4096, 2048)
    assert config.has_paged_context
    assert config.is_for_inflight_batching
