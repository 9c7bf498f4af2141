"""Traps of upstream's ExecutorConfig, one per test.

Each docstring describes upstream's behavior, which the fake copies (tests/fakes) as far as the API facts go.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.engine_files.manifest import ManifestError
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import GUIDE_PARAM, FinishReason, Guide, GuideType
from llm_pipeline.text.vocabulary import read_vocabulary
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import CreateBench, TrtllmBench, request_with


def added_token(token_id: int, content: str) -> dict[str, Any]:
    """Returns an entry of tokenizer.json's added tokens."""
    return {"id": token_id, "content": content}


def write_tokenizer(folder: Path) -> Path:
    """Writes a tokenizer.json with three tokens, as far as upstream reads it."""
    document = {
        "model": {"type": "BPE", "vocab": {"Ġa": 1, "Ġb": 0}},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [added_token(3, "<end>")],
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder / "tokenizer.json"


def test_guide_goes_upstream_with_its_type(create_bench: CreateBench, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    bench = create_bench(engine={"tokenizer": tokenizer}, trtllm_guided_decoding="xgrammar")
    sent = bench.sent(request_with(guide=Guide(GuideType.REGEX, "[ab]+"), stop_token_ids=(2,)))
    assert sent.guided_decoding_params.guide == "[ab]+"
    assert sent.guided_decoding_params.guide_type is bench.trtllm.GuidedDecodingParams.GuideType.REGEX
    config = bench.fake.config.guided_decoding_config
    assert config.backend is bench.trtllm.GuidedDecodingConfig.GuidedDecodingBackend.XGRAMMAR
    assert config.encoded_vocab == ["Ġb", "Ġa", "", "<end>"]
    assert config.stop_token_ids == [2]
    assert config.tokenizer_str == tokenizer.read_text()


def test_guides_are_off_for_an_engine_of_several_stages(
    create_bench: CreateBench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the last stage compiles them: one that failed there could leave the others waiting."""
    bench = create_bench(
        engine={"pp": 2, "tokenizer": write_tokenizer(tmp_path)},
        script={"sms": [90, 90]},
        ompi_comm_world_size=2,
        ompi_comm_world_local_size=2,
        trtllm_guided_decoding="xgrammar",
    )
    assert bench.fake.config.guided_decoding_config is None
    assert "structured output is off" in caplog.text
    with pytest.raises(PipelineError) as caught:
        bench.submit(request_with(guide=Guide(GuideType.REGEX, "[ab]+"), stop_token_ids=(2,)))
    assert caught.value.param == GUIDE_PARAM


def test_guide_without_an_end_token_is_rejected(create_bench: CreateBench, tmp_path: Path) -> None:
    """xgrammar raises in the step after the end of the guided text, which fails the step of all requests."""
    bench = create_bench(engine={"tokenizer": write_tokenizer(tmp_path)}, trtllm_guided_decoding="xgrammar")
    with pytest.raises(PipelineError) as caught:
        bench.submit(request_with(guide=Guide(GuideType.REGEX, "[ab]+"), stop_token_ids=()))
    assert caught.value.param == GUIDE_PARAM


def test_unigram_vocabulary_is_read() -> None:
    """Unigram models list pieces with their scores; ids are positions."""
    document = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [added_token(1, "<s>")]}
    assert read_vocabulary(json.dumps(document)) == ["a", "<s>"]


def test_executor_needs_path_type_and_config(bench: TrtllmBench) -> None:
    trtllm = bench.trtllm
    with pytest.raises(TypeError):
        trtllm.Executor(bench.settings.engine_dir, trtllm.ModelType.DECODER_ONLY)


def test_normalize_log_probs_is_always_set(bench: TrtllmBench) -> None:
    """Its default is True in one release and False in another."""
    assert bench.fake.config.normalize_log_probs is False


def test_settings_reach_upstreams_config(create_bench: CreateBench) -> None:
    bench = create_bench(
        trtllm_kv_cache_free_fraction=0.5,
        trtllm_kv_cache_tokens=4096,
        trtllm_kv_host_cache_gib=2,
        trtllm_scheduler_policy="max_utilization",
        trtllm_max_queue_size=9,
        trtllm_max_batch_size=2,
        trtllm_max_num_tokens=512,
    )
    config, policies = bench.fake.config, bench.trtllm.CapacitySchedulerPolicy
    assert config.kv_cache_config.free_gpu_memory_fraction == 0.5
    assert config.kv_cache_config.max_tokens == 4096
    assert config.kv_cache_config.host_cache_size == 2 * 2**30
    assert config.scheduler_config.capacity_scheduler_policy is policies.MAX_UTILIZATION
    assert (config.max_queue_size, config.max_batch_size, config.max_num_tokens) == (9, 2, 512)
    assert config.batching_type is bench.trtllm.BatchingType.INFLIGHT
    assert config.parallel_config is None


@pytest.mark.parametrize("built", [True, False], ids=["built for it", "not built for it"])
def test_block_reuse_and_chunked_context_default_to_the_build(create_bench: CreateBench, built: bool) -> None:
    """Both need use_paged_context_fmha."""
    config = create_bench(engine={"has_paged_context": built}).fake.config
    assert config.enable_chunked_context is built
    assert config.kv_cache_config.enable_block_reuse is built


@pytest.mark.parametrize("name", ["trtllm_block_reuse", "trtllm_chunked_context"])
def test_setting_that_needs_paged_context_is_rejected_without_it(create_bench: CreateBench, name: str) -> None:
    with pytest.raises(ManifestError, match=name.upper()):
        create_bench(engine={"has_paged_context": False}, **{name: True})


@pytest.mark.parametrize("name", ["trtllm_max_batch_size", "trtllm_max_num_tokens"])
def test_limits_of_the_engine_can_be_lowered_but_not_raised(create_bench: CreateBench, name: str) -> None:
    with pytest.raises(ManifestError, match=f"{name.upper()} is 100000"):
        create_bench(**{name: 100_000})


def test_orchestrator_mode_passes_the_worker_program(create_bench: CreateBench, tmp_path: Path) -> None:
    worker = tmp_path / "trtllmExecutorWorker"
    worker.touch()
    bench = create_bench(
        engine={"tp": 2}, script={"sms": [90, 90]}, trtllm_parallel_mode="orchestrator", trtllm_worker_path=worker
    )
    parallel = bench.fake.config.parallel_config
    assert parallel.communication_mode is bench.trtllm.CommunicationMode.ORCHESTRATOR
    assert parallel.orchestrator_config.is_orchestrator is True
    assert parallel.orchestrator_config.worker_executable_path == str(worker)
    assert bench.end_of(make_request(max_tokens=2)).finish_reason is FinishReason.LENGTH
