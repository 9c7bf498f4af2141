"""Checks at load: directories, machines and settings that do not fit each other are rejected in one message."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError
from llm_pipeline.executors.port import EngineStartError
from llm_pipeline.executors.registry import create_executor
from llm_pipeline.executors.tensorrt_llm_pytorch.load import load_executor
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason
from llm_pipeline.runtime.settings import PipelineSettings
from tests.fakes.gpu_engine import make_gpu_engine
from tests.fakes.model_directory import make_model_directory
from tests.support.executor_rules import StepRecorder
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


def both(version: str, installed: str | None = None) -> dict[str, Any]:
    return {"engine": {"version": version}, "script": {"version": installed or version}}


@pytest.mark.parametrize("version", ["1.2.1", "1.2.2", "1.3.0rc26", "1.3.0", "1.4.0rc1"])
def test_supported_release_is_accepted(create_bench: CreateBench, version: str) -> None:
    bench = create_bench(**both(version))
    assert bench.end_of(make_request(max_tokens=1)).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("version", ["1.1.0", "1.2.0", "1.3.0rc25", "1.5.0", "unknown"])
def test_other_releases_are_rejected(create_bench: CreateBench, version: str) -> None:
    assert "1.3.0rc26" in load_error(create_bench, **both(version))


def test_installed_release_that_is_not_supported_is_rejected(create_bench: CreateBench) -> None:
    assert "Installed is TensorRT-LLM 1.2.0" in load_error(create_bench, **both("1.2.1", "1.2.0"))


@pytest.mark.parametrize(("made_for", "installed"), [("1.2.1", "1.3.0"), ("1.3.0", "1.2.1")])
def test_release_of_another_profile_is_rejected(create_bench: CreateBench, made_for: str, installed: str) -> None:
    """Preprocess has the capabilities of the manifest's release."""
    message = load_error(create_bench, **both(made_for, installed))
    assert made_for in message
    assert installed in message


def test_release_of_the_same_profile_is_accepted(create_bench: CreateBench) -> None:
    create_bench(**both("1.3.0rc26", "1.4.0rc1"))


def test_gpu_of_another_sm_is_rejected(create_bench: CreateBench) -> None:
    message = load_error(create_bench, engine={"sm": 90}, script={"sms": [80]})
    assert "SM 90" in message
    assert "SM 80" in message


def test_machine_without_a_gpu_is_rejected(create_bench: CreateBench) -> None:
    assert "No GPU" in load_error(create_bench, script={"sms": []})


@pytest.mark.parametrize(
    ("engine", "script", "settings", "message"),
    [
        ({"tp": 2}, {}, {}, "needs 2 GPUs on this machine (tp 2 x pp 1) and this process sees 1"),
        ({"tp": 2, "pp": 2}, {"sms": [90] * 4}, {"ompi_comm_world_size": 2}, "for 4 GPUs (tp 2 x pp 2)"),
        ({}, {}, {"ompi_comm_world_size": 2}, "mpirun started 2 processes. Start one."),
        ({}, {}, {"trtllm_parallel_mode": "orchestrator"}, "TRTLLM_PARALLEL_MODE"),
        ({}, {}, {"trtllm_max_queue_size": 5}, "TRTLLM_MAX_QUEUE_SIZE"),
        ({}, {}, {"trtllm_max_batch_size": 4}, "TRTLLM_MAX_BATCH_SIZE is 4, but the model was planned for 3"),
        ({}, {}, {"trtllm_max_num_tokens": 8193}, "TRTLLM_MAX_NUM_TOKENS is 8193"),
    ],
)
def test_what_does_not_fit_is_rejected(
    create_bench: CreateBench, engine: dict[str, Any], script: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    assert message in load_error(create_bench, engine=engine, script=script, **settings)


def test_several_gpus_are_spawned_from_one_process(create_bench: CreateBench) -> None:
    bench = create_bench(engine={"tp": 2}, script={"sms": [90, 90]})
    assert bench.end_of(make_request(max_tokens=2)).finish_reason is FinishReason.LENGTH
    assert len(bench.fake.workers) == 2


@pytest.mark.parametrize("is_single", [True, False])
def test_one_gpu_is_served_in_this_process_unless_the_setting_says_otherwise(
    create_bench: CreateBench, is_single: bool
) -> None:
    bench = create_bench(trtllm_single_process=is_single)
    assert len(bench.fake.workers) == (0 if is_single else 1)


def test_file_that_has_changed_is_rejected(create_bench: CreateBench, tmp_path: Path) -> None:
    bench = create_bench()
    weights = bench.settings.engine_dir / "model.safetensors"
    weights.write_bytes(b"on weights")  # of the same size
    with pytest.raises(ManifestError, match=r"model\.safetensors"):
        bench.create(StepRecorder())
    weights.write_bytes(b"other weights")
    settings = bench.settings.model_copy(update={"trtllm_check_files": "size"})
    with pytest.raises(ManifestError, match=r"model\.safetensors"):
        load_executor(settings, bench.manifest, StepRecorder())


@pytest.mark.parametrize("runtime", ["cpu", "engine"])
def test_engine_of_another_runtime_is_rejected(tmp_path: Path, runtime: str) -> None:
    manifest = make_manifest() if runtime == "cpu" else make_gpu_engine(tmp_path)
    settings = PipelineSettings(engine_dir=tmp_path, executor="tensorrt_llm_pytorch")
    with pytest.raises(ManifestError, match="not a model directory") as caught:
        load_executor(settings, manifest, StepRecorder())
    assert ("EXECUTOR=cpu" if runtime == "cpu" else "EXECUTOR=tensorrt_llm,") in str(caught.value)


def test_missing_tensorrt_llm_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    manifest = make_model_directory(tmp_path / "model")
    settings = PipelineSettings(engine_dir=tmp_path / "model", executor="tensorrt_llm_pytorch")
    with pytest.raises(EngineStartError, match="tensorrt-llm-pytorch"):
        create_executor(settings, manifest, StepRecorder())


def test_error_of_the_load_is_one_of_the_start(create_bench: CreateBench) -> None:
    """The directory has no tokenizer, which upstream needs for guided decoding."""
    with pytest.raises(EngineStartError, match="could not load tiny: Can't load tokenizer"):
        create_bench(trtllm_guided_decoding="xgrammar")


def test_llm_gets_the_limits_of_the_manifest_and_the_settings(create_bench: CreateBench) -> None:
    bench = create_bench(
        engine={"kv_cache_precision": "fp8", "max_num_tokens": 4096},
        trtllm_max_batch_size=2,
        trtllm_block_reuse=False,
        trtllm_chunked_context=False,
        trtllm_kv_cache_free_fraction=0.5,
        trtllm_kv_cache_tokens=1000,
        trtllm_kv_host_cache_gib=1.5,
        trtllm_scheduler_policy="max_utilization",
    )
    args = bench.fake.args
    assert (args.max_batch_size, args.max_num_tokens, args.max_seq_len) == (2, 4096, 10**7)
    cache = args.kv_cache_config
    assert (cache.dtype, cache.enable_block_reuse, cache.free_gpu_memory_fraction) == ("fp8", False, 0.5)
    assert (cache.max_tokens, cache.host_cache_size) == (1000, 3 * 2**29)
    assert args.scheduler_config.capacity_scheduler_policy.name == "MAX_UTILIZATION"
    assert args.enable_chunked_prefill is False
    assert args.trust_remote_code is False
    assert args.skip_tokenizer_init is True


@pytest.mark.parametrize(
    ("version", "is_hybrid", "is_reused"),
    [("1.2.1", False, True), ("1.2.1", True, False), ("1.3.0", True, True)],
)
def test_hybrid_models_reuse_no_blocks_before_1_3(
    create_bench: CreateBench, version: str, is_hybrid: bool, is_reused: bool
) -> None:
    args = create_bench(script={"version": version}, engine={"version": version, "is_hybrid": is_hybrid}).fake.args
    assert args.kv_cache_config.enable_block_reuse is is_reused


def test_block_reuse_of_a_hybrid_model_is_refused_before_1_3(create_bench: CreateBench) -> None:
    with pytest.raises(ManifestError, match="TRTLLM_BLOCK_REUSE is on"):
        create_bench(engine={"is_hybrid": True}, trtllm_block_reuse=True)


@pytest.mark.parametrize(("version", "sampler"), [("1.2.1", "TRTLLMSampler"), ("1.3.0", None)])
def test_older_releases_sample_with_trtllm_sampler(create_bench: CreateBench, version: str, sampler: str) -> None:
    """The sampler that the default would be ignores seeds and penalties in silence."""
    args = create_bench(**both(version)).fake.args
    assert getattr(args, "sampler_type", None) == sampler


@pytest.mark.parametrize("is_chunked", [True, False])
def test_prompt_must_fit_into_one_step_without_chunked_prefill(create_bench: CreateBench, is_chunked: bool) -> None:
    bench = create_bench(engine={"max_num_tokens": 16}, trtllm_chunked_context=is_chunked)
    request = make_request(prompt_ids=(1,) * 17, max_tokens=1)
    if is_chunked:
        assert bench.end_of(request).finish_reason is FinishReason.LENGTH
        return
    with pytest.raises(PipelineError) as caught:
        bench.submit(request)
    assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED


def test_manifest_on_disk_is_that_of_a_model_directory(create_bench: CreateBench) -> None:
    assert EngineManifest.load(create_bench().settings.engine_dir).runtime == "pytorch"
