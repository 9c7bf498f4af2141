"""Checks at load: engines, machines and settings that do not fit each other are rejected in one message."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError
from llm_pipeline.engine_files.trtllm_config import EngineConfig
from llm_pipeline.executors.port import EngineStartError
from llm_pipeline.executors.registry import create_executor
from llm_pipeline.executors.tensorrt_llm.compatibility import check_engine
from llm_pipeline.protocol.messages import FinishReason
from llm_pipeline.runtime.settings import PipelineSettings
from tests.fakes.gpu_engine import make_gpu_engine
from tests.support.sample_requests import make_manifest, make_request
from tests.support.trtllm_bench import CreateBench


def load_error(create_bench: CreateBench, **arguments: Any) -> str:
    """Returns the message of the ManifestError that the load must raise."""
    with pytest.raises(ManifestError) as caught:
        create_bench(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def build_config(**values: Any) -> dict[str, Any]:
    limits = {"max_batch_size": 4, "max_seq_len": 64, "max_num_tokens": 64, "kv_cache_type": "PAGED"}
    return {"build_config": {**limits, **values}}


def test_engine_of_another_sm_is_rejected(create_bench: CreateBench) -> None:
    message = load_error(create_bench, engine={"sm": 90}, script={"sms": [80]})
    assert "SM 90" in message
    assert "SM 80" in message


def test_one_gpu_of_another_sm_among_several_is_rejected(create_bench: CreateBench) -> None:
    assert "CUDA_VISIBLE_DEVICES" in load_error(create_bench, script={"sms": [90, 89]})


@pytest.mark.parametrize("sm", [80, 86, 89, 90, 100, 120])
def test_engine_of_the_same_sm_is_accepted(create_bench: CreateBench, sm: int) -> None:
    bench = create_bench(engine={"sm": sm}, script={"sms": [sm]})
    assert bench.end_of(make_request(max_tokens=1)).finish_reason is FinishReason.LENGTH


def test_machine_without_a_gpu_is_rejected(create_bench: CreateBench) -> None:
    assert "No GPU" in load_error(create_bench, script={"sms": []})


def test_engine_of_another_version_is_rejected(create_bench: CreateBench) -> None:
    message = load_error(create_bench, engine={"version": "1.2.0"}, script={"version": "1.2.1"})
    assert "1.2.0" in message
    assert "1.2.1" in message


@pytest.mark.parametrize("version", ["0.21.0", "1.0.0", "1.3.0rc3", "2.0.0", "unknown"])
def test_unsupported_version_is_rejected(create_bench: CreateBench, version: str) -> None:
    """1.0 dies of a structural tag and can't keep prefix caches apart; 1.3 has no engine runtime."""
    message = load_error(create_bench, engine={"version": version}, script={"version": version})
    assert "engines are served with 1.1 up to, but not including, 1.3" in message
    assert version in message


@pytest.mark.parametrize("version", ["1.1.0", "1.2.0rc8", "1.2.1"])
def test_supported_version_is_accepted(create_bench: CreateBench, version: str) -> None:
    create_bench(engine={"version": version}, script={"version": version})


@pytest.mark.parametrize(
    ("engine", "settings", "message"),
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
def test_wrong_number_of_processes_is_rejected(
    create_bench: CreateBench, engine: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    assert message in load_error(create_bench, engine=engine, **settings)


def test_orchestrator_with_too_few_gpus_is_rejected(create_bench: CreateBench, tmp_path: Path) -> None:
    worker = tmp_path / "worker"
    worker.touch()
    settings = {"trtllm_parallel_mode": "orchestrator", "trtllm_worker_path": worker}
    assert "needs 4 GPUs" in load_error(create_bench, engine={"tp": 4}, script={"sms": [90, 90]}, **settings)


def test_leader_mode_with_one_process_per_gpu_is_accepted(create_bench: CreateBench) -> None:
    bench = create_bench(
        engine={"tp": 2}, script={"sms": [90, 90]}, ompi_comm_world_size=2, ompi_comm_world_local_size=2
    )
    assert bench.end_of(make_request(max_tokens=1)).finish_reason is FinishReason.LENGTH


def changed_engine(folder: Path, name: str, content: bytes | None) -> PipelineSettings:
    """Makes an engine, replaces or removes one of its files, and returns settings for it."""
    make_gpu_engine(folder / "engine")
    if content is None:
        (folder / "engine" / name).unlink()
    else:
        (folder / "engine" / name).write_bytes(content)
    return PipelineSettings(engine_dir=folder / "engine", executor="tensorrt_llm")


@pytest.mark.parametrize(
    ("content", "check", "rank", "is_rejected"),
    [
        (None, "sha256", 0, True),
        (None, "size", 0, True),
        (b"NO ENGINE", "sha256", 0, True),
        (b"NO ENGINE", "size", 0, False),
        (b"NO ENGINE", "sha256", 1, False),
        (b"longer than it was", "size", 0, True),
    ],
    ids=["missing", "missing, by size", "changed", "changed, by size", "changed, on another rank", "longer, by size"],
)
def test_missing_or_changed_file_is_rejected(
    tmp_path: Path, content: bytes | None, check: str, rank: int, is_rejected: bool
) -> None:
    plain = changed_engine(tmp_path, "rank0.engine", content)
    settings = plain.model_copy(update={"trtllm_check_files": check, "ompi_comm_world_rank": rank})
    manifest, config = EngineManifest.load(settings.engine_dir), EngineConfig.load(settings.engine_dir)
    if not is_rejected:
        check_engine(settings, manifest, config)
        return
    with pytest.raises(ManifestError, match=r"rank0\.engine"):
        check_engine(settings, manifest, config)


def test_engine_for_cpus_is_rejected(tmp_path: Path) -> None:
    settings = changed_engine(tmp_path, "unrelated", b"")
    with pytest.raises(ManifestError, match="EXECUTOR=cpu"):
        create_executor(settings, make_manifest(), lambda step: None)


@pytest.mark.parametrize("content", [None, b"{}", b"not json"], ids=["missing", "empty", "not json"])
def test_invalid_config_is_rejected(tmp_path: Path, content: bytes | None) -> None:
    settings = changed_engine(tmp_path, "config.json", content)
    with pytest.raises(ManifestError, match=r"config\.json"):
        create_executor(settings, EngineManifest.load(settings.engine_dir), lambda step: None)


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
def test_config_and_manifest_of_different_engines_are_rejected(
    create_bench: CreateBench, config: dict[str, Any], what: str
) -> None:
    message = load_error(create_bench, engine={"config": config, "max_seq_len": 64})
    assert "different engines" in message
    assert what in message


@pytest.mark.parametrize(
    "config",
    [build_config(kv_cache_type="CONTINUOUS"), build_config(plugin_config={"remove_input_padding": False})],
    ids=["continuous KV cache", "padded input"],
)
def test_engine_without_in_flight_batching_is_rejected(create_bench: CreateBench, config: dict[str, Any]) -> None:
    assert "in-flight batching" in load_error(create_bench, engine={"config": config, "max_seq_len": 64})


def test_missing_tensorrt_llm_is_reported_with_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def import_without_tensorrt_llm(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "tensorrt_llm":
            raise ImportError("libmpi.so.40: cannot open shared object file")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_tensorrt_llm)
    settings = changed_engine(tmp_path, "unrelated", b"")
    with pytest.raises(EngineStartError, match=r"libmpi\.so\.40.*triton-completions\[tensorrt-llm\]"):
        create_executor(settings, EngineManifest.load(settings.engine_dir), lambda step: None)


def test_llguidance_is_rejected_with_a_sentence(create_bench: CreateBench) -> None:
    """Upstream's constructor would refuse it after minutes, with pages of C++ stacks."""
    message = load_error(create_bench, trtllm_guided_decoding="llguidance")
    assert "TRTLLM_GUIDED_DECODING is llguidance" in message
    assert "Set it to xgrammar" in message


def test_config_json_has_upstreams_keys(tmp_path: Path) -> None:
    """build_engine checks the same file."""
    make_gpu_engine(tmp_path, tp=2, pp=2, max_seq_len=4096, max_num_tokens=2048, vocab_size=32000)
    config = EngineConfig.load(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert set(document) == {"version", "pretrained_config", "build_config"}
    assert (config.world_size, config.build_config.max_seq_len, config.build_config.max_num_tokens) == (4, 4096, 2048)
    assert config.has_paged_context
    assert config.is_for_inflight_batching
