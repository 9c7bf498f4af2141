"""The memory estimate against published figures and logs, and the properties that every estimate has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build_engine.gpu.planning.memory_model import GIB
from build_engine.pytorch.checkpoint.model_directory import read_model_directory
from build_engine.pytorch.planning.kv_cache import TOKENS_PER_BLOCK
from build_engine.pytorch.planning.memory import estimate_memory
from build_engine.pytorch.planning.parameters import count_parameters
from build_engine.pytorch.planning.plan import PyTorchSpec
from build_engine.pytorch.planning.planner import PyTorchRequest, resolve
from tests.support.published_figures import (
    CHECKPOINT_GIB,
    GPT_OSS_LOG_ACTIVATIONS_GIB,
    GPT_OSS_LOG_GPU_GIB,
    GPT_OSS_LOG_GRAPHS,
    GPT_OSS_LOG_KV_BYTES_PER_TOKEN,
    GPT_OSS_LOG_WEIGHTS_GIB,
    KV_GIB_OF_128000_FP16_TOKENS,
    MODEL_CARD_PARAMETERS,
    Figure,
)
from tests.support.pytorch_models import (
    MODELS,
    decoder_of,
    memory_of,
    pytorch_request,
    pytorch_requests,
    tiny_config,
    write_model,
)

# --- Published figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", CHECKPOINT_GIB, ids=lambda figure: figure.model)
def test_the_size_of_a_checkpoint_is_the_published_one(figure: Figure) -> None:
    """As exactly as the card gives it: one decimal."""
    assert round(memory_of(figure.model).weights_bytes / GIB, 1) == figure.published


@pytest.mark.parametrize("figure", MODEL_CARD_PARAMETERS, ids=lambda figure: figure.model)
def test_parameters_are_those_of_the_model_card(figure: Figure) -> None:
    assert count_parameters(decoder_of(figure.model)) == pytest.approx(figure.published, rel=5e-4)


@pytest.mark.parametrize("figure", KV_GIB_OF_128000_FP16_TOKENS, ids=lambda figure: figure.model)
def test_the_kv_cache_of_a_long_context_is_the_published_one(figure: Figure) -> None:
    per_token = memory_of(figure.model).kv_cache_bytes_per_token
    assert per_token * 128_000 / GIB == pytest.approx(figure.published, abs=0.01)


def test_a_public_log_of_gpt_oss_has_the_same_kv_cache_and_more_weights_than_the_estimate() -> None:
    """The estimate is 4.3 % below the log's weights: MXFP4 kernels pad the 2880 columns of a matrix."""
    memory = memory_of("gpt-oss-120b", "gb10", max_batch_size=64, max_num_tokens=8192)
    assert memory.kv_cache_bytes_per_token == GPT_OSS_LOG_KV_BYTES_PER_TOKEN
    assert memory.gpu_bytes / GIB == pytest.approx(GPT_OSS_LOG_GPU_GIB, rel=0.005)
    assert memory.weights_bytes / GIB == pytest.approx(GPT_OSS_LOG_WEIGHTS_GIB * (1 - 0.043), rel=0.002)
    assert GPT_OSS_LOG_ACTIVATIONS_GIB < memory.activation_bytes / GIB < 2 * GPT_OSS_LOG_ACTIVATIONS_GIB
    assert memory.cuda_graph_bytes % GPT_OSS_LOG_GRAPHS == 0


# --- Keys, values and states ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("llama-3.1-8b", {}, 2 * 32 * 8 * 128 * 2),
        ("llama-3.1-8b", {"kv": "fp8"}, 2 * 32 * 8 * 128),
        ("llama-3.1-8b", {"tp": 2}, 2 * 32 * 4 * 128 * 2),
        ("qwen3-30b-a3b", {"tp": 8}, 2 * 48 * 1 * 128 * 2),  # 4 heads are replicated over 8 GPUs
        ("llama-3.1-8b", {"pp": 3}, 2 * 11 * 8 * 128 * 2),  # 32 layers: 11, 11 and 10
        ("deepseek-v3", {"tp": 8}, 61 * (512 + 64) * 2),  # tp does not split the compressed vector
        ("deepseek-v3", {"tp": 8, "kv": "fp8"}, 61 * (512 + 64)),
        ("nemotron-3-nano-30b", {}, 2 * 6 * 2 * 128 * 2),  # 6 of 52 layers have attention
        ("qwen3.5-27b", {}, 2 * 16 * 4 * 256 * 2),  # 16 of 64
        ("gemma-3-27b", {}, 2 * 62 * 16 * 128 * 2),  # windows keep every token by default
    ],
)
def test_bytes_of_a_token_follow_upstreams_formula(model: str, options: dict[str, Any], expected: int) -> None:
    assert memory_of(model, **options).kv_cache_bytes_per_token == expected


def test_an_nvfp4_cache_has_a_scale_for_sixteen_values(tmp_path: Path) -> None:
    path = write_model(tmp_path, tiny_config("LlamaForCausalLM"))
    (path / "hf_quant_config.json").write_text(
        '{"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "NVFP4"}}'
    )
    memory = memory_of(read_model_directory(path), "b200")
    values = 2 * 4 * 2 * 64
    assert memory.kv_cache_bytes_per_token == values // 2 + values // 16


def test_states_have_the_shapes_of_upstreams_mamba_cache() -> None:
    """Convolution in bfloat16, recurrence in float32, for each layer without attention and each request."""
    nemotron = memory_of("nemotron-3-nano-30b", max_batch_size=2)
    channels = 64 * 64 + 2 * 8 * 128
    assert nemotron.state_bytes == 2 * 23 * (channels * 3 * 2 + 64 * 64 * 128 * 4)
    qwen = memory_of("qwen3.5-27b", max_batch_size=1)
    channels = 48 * 128 + 2 * 16 * 128
    assert qwen.state_bytes == 48 * (channels * 3 * 2 + 48 * 128 * 128 * 4)


def test_windows_shrink_a_request_only_if_the_server_uses_them() -> None:
    short, long = (memory_of("gpt-oss-20b", max_seq_len=length) for length in (160, 65_536))
    assert short.largest_batch_with_windows == short.largest_batch_that_fits  # 128 tokens and a block are all of it
    assert long.largest_batch_with_windows > 1.9 * long.largest_batch_that_fits


def test_a_model_without_windows_gains_nothing_from_them() -> None:
    memory = memory_of("llama-3.1-8b")
    assert memory.largest_batch_with_windows == memory.largest_batch_that_fits


# --- Properties -------------------------------------------------------------------------------------------------------


def spec_of(request: PyTorchRequest) -> PyTorchSpec:
    return resolve(request)


@given(pytorch_requests(), st.sampled_from(["max_batch_size", "max_seq_len", "max_num_tokens"]), st.integers(1, 5000))
@settings(max_examples=150, deadline=None)
def test_memory_grows_with_every_limit(request: PyTorchRequest, limit: str, more: int) -> None:
    spec = spec_of(request)
    value = getattr(spec.limits, limit)
    larger = replace(spec, limits=replace(spec.limits, **{limit: value + more}))
    before, after = estimate_memory(spec), estimate_memory(larger)
    assert before is not None
    assert after is not None
    assert after.total_bytes >= before.total_bytes
    assert after.kv_pool_bytes <= before.kv_pool_bytes
    if limit == "max_seq_len":
        assert after.largest_batch_that_fits <= before.largest_batch_that_fits


@given(pytorch_requests())
@settings(max_examples=150, deadline=None)
def test_the_largest_batch_fits_and_one_more_does_not(request: PyTorchRequest) -> None:
    spec = spec_of(request)
    first = estimate_memory(spec)
    assert first is not None
    largest = first.largest_batch_that_fits
    assert largest <= first.largest_batch_with_windows
    for batch, fits in ((largest, True), (largest + 1, False)):
        if batch:
            memory = estimate_memory(replace(spec, limits=replace(spec.limits, max_batch_size=batch)))
            assert memory is not None
            assert memory.fits is fits


@given(pytorch_requests())
@settings(max_examples=100, deadline=None)
def test_parts_add_up_and_the_pool_leaves_a_margin(request: PyTorchRequest) -> None:
    memory = estimate_memory(spec_of(request))
    assert memory is not None
    assert memory.total_bytes == memory.fixed_bytes + memory.kv_cache_bytes
    assert 0 <= memory.kv_pool_bytes <= max(0, memory.gpu_bytes - memory.fixed_bytes)
    if memory.kv_pool_bytes:
        assert memory.fixed_bytes + memory.kv_pool_bytes + memory.margin_bytes == memory.gpu_bytes
    if memory.fits:
        assert memory.total_bytes <= memory.gpu_bytes


@given(st.sampled_from(sorted(MODELS)), st.integers(2, 9000), st.sampled_from([1, 2, 4]))
@settings(max_examples=100, deadline=None)
def test_a_request_has_whole_blocks(model: str, tokens: int, tp: int) -> None:
    memory = estimate_memory(resolve(pytorch_request(model, "b300", tp=tp, max_seq_len=tokens)))
    assert memory is not None
    blocks = -(-tokens // TOKENS_PER_BLOCK)
    assert memory.kv_cache_bytes_per_request == blocks * TOKENS_PER_BLOCK * memory.kv_cache_bytes_per_token


@pytest.mark.parametrize("model", sorted(MODELS))
def test_an_fp8_cache_holds_twice_the_tokens(model: str) -> None:
    wide, narrow = (memory_of(model, tp=8, kv=kv, max_batch_size=1) for kv in ("fp16", "fp8"))
    assert narrow.kv_tokens == pytest.approx(2 * wide.kv_tokens, rel=0.01)
