"""The estimate against published figures (5 %), by hand, and its properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build_engine.gpu.planning.memory import estimate_memory
from build_engine.gpu.planning.memory_model import DECODER_BYTES, GIB, MemoryModel
from build_engine.gpu.planning.model_config import ModelConfig, parse_model_config
from build_engine.gpu.planning.parameters import count_parameters, vocabulary_elements
from build_engine.gpu.planning.planner import PlanRequest, resolve
from tests.support.plan_requests import MODELS, plan_for, plan_requests, request_for, with_options
from tests.support.published_figures import (
    ACTIVATION_MAX_NUM_TOKENS,
    BF16_ENGINE_ACTIVATIONS,
    BF16_ENGINE_WEIGHTS,
    FP8_WEIGHTS,
    KV_GIB_OF_128000_FP16_TOKENS,
    NON_EMBEDDING_PARAMETERS,
    PARAMETERS,
    Figure,
)

WITHIN_5_PERCENT = 0.05
WITHIN_10_PERCENT = 0.1


def check(figure: Figure, estimate: float) -> None:
    assert estimate == pytest.approx(figure.published, rel=WITHIN_5_PERCENT), figure.source


def llama_7b() -> ModelConfig:
    """Without grouped heads: as many for keys and values as for queries."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float16",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "vocab_size": 32000,
    }
    return parse_model_config(config, "llama-7b")


@pytest.mark.parametrize("figure", PARAMETERS, ids=lambda figure: figure.model)
def test_parameters_are_as_published(figure: Figure) -> None:
    check(figure, count_parameters(MODELS[figure.model]))


def test_qwen3_8b_is_counted_to_the_last_norm() -> None:
    """By hand: 36 layers of attention, MLP, two norms and one for each of query and key; two tables; one norm."""
    attention = 4096 * (4096 + 2 * 1024) + 4096 * 4096
    layer = attention + 3 * 4096 * 12_288 + 2 * 4096 + 2 * 128
    assert count_parameters(MODELS["qwen3-8b"]) == 36 * layer + 2 * 151_936 * 4096 + 4096 == 8_190_735_360


def test_biases_are_counted_where_an_architecture_has_them() -> None:
    plain = llama_7b()
    query_key_value = 3 * 4096
    biased = replace(plain, qkv_bias=True)
    assert count_parameters(biased) - count_parameters(plain) == 32 * query_key_value
    assert count_parameters(replace(biased, output_bias=True)) - count_parameters(biased) == 32 * 4096
    assert count_parameters(replace(plain, mlp_bias=True)) - count_parameters(plain) == 32 * (2 * 11_008 + 4096)


@pytest.mark.parametrize("figure", NON_EMBEDDING_PARAMETERS, ids=lambda figure: figure.model)
def test_parameters_without_embeddings_are_as_published(figure: Figure) -> None:
    model = MODELS[figure.model]
    check(figure, count_parameters(model) - 2 * vocabulary_elements(model))


@pytest.mark.parametrize("figure", KV_GIB_OF_128000_FP16_TOKENS, ids=lambda figure: figure.model)
def test_the_kv_cache_is_as_published(figure: Figure) -> None:
    memory = plan_for(figure.model, precision="bf16").memory
    check(figure, 128_000 * memory.kv_cache_bytes_per_token / GIB)


@pytest.mark.parametrize("figure", FP8_WEIGHTS, ids=lambda figure: figure.model)
def test_fp8_weights_are_as_published(figure: Figure) -> None:
    check(figure, plan_for(figure.model, precision="fp8").memory.weights_bytes)


@pytest.mark.parametrize("figure", BF16_ENGINE_WEIGHTS, ids=lambda figure: figure.model)
def test_engine_weights_are_as_a_build_log_has_them(figure: Figure) -> None:
    assert plan_for(figure.model, precision="bf16").memory.weights_bytes == figure.published


@pytest.mark.parametrize("figure", BF16_ENGINE_ACTIVATIONS, ids=lambda figure: figure.model)
def test_activations_are_near_those_of_the_one_build_log_at_hand(figure: Figure) -> None:
    plan = plan_for(figure.model, precision="bf16", max_num_tokens=ACTIVATION_MAX_NUM_TOKENS)
    assert plan.memory.activation_bytes == pytest.approx(figure.published, rel=WITHIN_10_PERCENT), figure.source


def test_the_kv_pool_is_the_one_in_upstreams_log() -> None:
    """memory.md: of 70.48 GiB free, 63.44 become 4060 blocks of 64 tokens, 259,840 in all.

    Its log names no model; a Llama 7B with a 1-byte cache is inferred from the 256 KiB that come to each token.
    """
    per_token = plan_for(llama_7b(), kv="fp8").memory.kv_cache_bytes_per_token
    assert per_token == 256 * 1024
    pool = MemoryModel().kv_pool(int(70.48 * GIB))
    assert pool / GIB == pytest.approx(63.44, abs=0.01)
    blocks = pool // (64 * per_token)
    assert (blocks, blocks * 64) == (pytest.approx(4060, abs=1), pytest.approx(259_840, abs=64))


@pytest.mark.parametrize(
    ("model", "tp", "pp", "expected"),
    [
        ("llama-3.1-8b", 1, 1, 2 * 32 * 8 * 128 * 2),
        ("llama-3.1-8b", 4, 1, 2 * 32 * 2 * 128 * 2),
        ("llama-3.1-8b", 16, 1, 2 * 32 * 1 * 128 * 2),
        ("llama-3.1-8b", 2, 4, 2 * 8 * 4 * 128 * 2),
        ("qwen3-32b", 1, 1, 2 * 64 * 8 * 128 * 2),
        ("smollm2-135m", 1, 1, 2 * 30 * 3 * 64 * 2),
    ],
    ids=["whole", "tp", "heads-copied", "tp-pp", "head-dim", "small"],
)
def test_kv_bytes_of_a_token_on_one_gpu(model: str, tp: int, pp: int, expected: int) -> None:
    assert plan_for(model, precision="bf16", tp=tp, pp=pp).memory.kv_cache_bytes_per_token == expected


@pytest.mark.parametrize(
    ("precision", "target", "bits"),
    [
        ("fp32", "h200", 32),
        ("bf16", "h200", 16),
        ("fp8", "h200", 8),
        ("int8-wo", "h200", 8),
        ("nvfp4", "b200", 4.5),
        ("int4-awq", "h200", 4.125),
        ("w4a8-awq", "h200", 4.125),
        ("int4-wo", "h200", 4),
    ],
)
def test_linear_weights_have_the_bits_of_their_format(precision: str, target: str, bits: float) -> None:
    """What is left of Llama 3.1 8B without its two tables, which stay at 16 bits, or 32 in fp32."""
    model = MODELS["llama-3.1-8b"]
    plan = plan_for(model, target, precision=precision)
    tables = 2 * vocabulary_elements(model)
    linear = plan.memory.weights_bytes - tables * plan.spec.dtype_bytes
    assert 8 * linear / (count_parameters(model) - tables) == pytest.approx(bits, rel=0.005)


def test_tied_embeddings_are_held_once_and_twice_over_two_stages() -> None:
    model = MODELS["smollm2-135m"]
    table = 2 * vocabulary_elements(model)
    whole = plan_for(model, precision="bf16").memory.weights_bytes
    staged = plan_for(model, precision="bf16", pp=2).memory.weights_bytes
    assert whole == 2 * count_parameters(model)
    assert staged == pytest.approx(table + (whole - table) / 2, rel=0.001)


def test_two_gpus_hold_half_the_weights_each() -> None:
    one, two = (plan_for("llama-3.1-70b", "b300", precision="bf16", tp=tp).memory.weights_bytes for tp in (1, 2))
    assert two == pytest.approx(one / 2, rel=0.001)


@given(plan_requests(), st.integers(1, 64), st.integers(1, 5000))
@settings(max_examples=150, deadline=None)
def test_more_requests_or_longer_ones_never_take_less(request: PlanRequest, requests: int, tokens: int) -> None:
    start = resolve(with_options(request, max_batch_size=request.options.max_batch_size or 1))
    limits = start.limits
    memory = estimate_memory(start)
    for grown in (
        replace(limits, max_batch_size=limits.max_batch_size + requests),
        replace(limits, max_seq_len=limits.max_seq_len + tokens),
        replace(limits, max_num_tokens=limits.max_num_tokens + tokens),
    ):
        larger = estimate_memory(replace(start, limits=grown))
        assert larger.total_bytes >= memory.total_bytes
        assert larger.kv_cache_bytes >= memory.kv_cache_bytes
        assert larger.kv_pool_bytes <= memory.kv_pool_bytes
    longer = estimate_memory(replace(start, limits=replace(limits, max_seq_len=limits.max_seq_len + tokens)))
    assert longer.largest_batch_that_fits <= memory.largest_batch_that_fits


@given(plan_requests())
@settings(max_examples=150, deadline=None)
def test_the_largest_batch_fits_and_one_more_does_not(request: PlanRequest) -> None:
    start = resolve(request)
    largest = estimate_memory(start).largest_batch_that_fits

    def fits(batch: int) -> bool:
        return estimate_memory(replace(start, limits=replace(start.limits, max_batch_size=batch))).fits

    assert largest == 0 or fits(largest)
    assert not fits(largest + 1)


@given(plan_requests())
@settings(max_examples=100, deadline=None)
def test_the_total_is_the_sum_of_its_parts(request: PlanRequest) -> None:
    memory = estimate_memory(resolve(request))
    parts = (memory.weights_bytes, memory.kv_cache_bytes, memory.activation_bytes, memory.workspace_bytes)
    assert memory.total_bytes == sum(parts)
    assert not memory.fits or memory.total_bytes <= memory.gpu_bytes


def test_a_batch_that_was_not_asked_for_is_what_fits() -> None:
    small = resolve(request_for("llama-3.1-8b", "a30"))
    assert small.limits.max_batch_size == estimate_memory(small).largest_batch_that_fits < 64
    assert resolve(request_for("llama-3.1-8b", "h200")).limits.max_batch_size == 64


# --- What is assumed ---


def test_llama_70b_in_fp8_on_four_gpus_by_hand() -> None:
    """Two key and value heads on each GPU; one byte for each weight of a matrix, and two 32-bit scales for each."""
    plan = plan_for("llama-3.1-70b", precision="fp8", tp=4, max_batch_size=8, max_seq_len=4096)
    qkv, output = (16 + 2 * 2) * 128 * 8192 + 8, 8192 * 16 * 128 + 8
    mlp = 2 * 7168 * 8192 + 8 + 8192 * 7168 + 8
    tables = 2 * (128_256 // 4) * 8192 * 2
    memory = plan.memory
    assert memory.weights_bytes == 80 * (qkv + output + mlp + 2 * 8192 * 2) + tables + 8192 * 2
    assert memory.kv_cache_bytes_per_token == 2 * 80 * 2 * 128
    assert memory.activation_bytes == 2 * 8192 * 8192 * 5
    assert memory.decoder_bytes == DECODER_BYTES + 8 * (128_256 * 8 + 4096 * 12)
    assert memory.workspace_bytes == 392 * 2**20 + memory.runtime_bytes + memory.decoder_bytes


def test_the_margin_is_what_stays_free_with_a_full_cache() -> None:
    memory = plan_for().memory
    rest = memory.weights_bytes + memory.activation_bytes + memory.workspace_bytes
    assert memory.margin_bytes == memory.gpu_bytes - rest - memory.kv_pool_bytes
    assert memory.margin_bytes == pytest.approx(0.1 * (memory.gpu_bytes - rest), abs=1)


@given(
    kv_fraction=st.floats(0.05, 0.98),
    runtime_gib=st.floats(0, 8),
    request=plan_requests(),
)
@settings(max_examples=60)
def test_more_for_the_runtime_or_less_for_the_cache_never_fits_more_requests(
    kv_fraction: float, runtime_gib: float, request: PlanRequest
) -> None:
    batches = [
        estimate_memory(resolve(with_options(request, kv_cache_fraction=kv, runtime_gib=gib))).largest_batch_that_fits
        for kv, gib in (
            (kv_fraction + 0.01, runtime_gib),
            (kv_fraction, runtime_gib),
            (kv_fraction, runtime_gib + 1),
        )
    ]
    assert batches == sorted(batches, reverse=True)


def test_the_careful_figure_of_nvidias_sizing_tool_can_be_asked_for() -> None:
    hopeful, careful = plan_for(), plan_for(runtime_gib=3.5)
    assert careful.memory.runtime_bytes - hopeful.memory.runtime_bytes == int(2.5 * GIB)
    assert careful.memory.largest_batch_that_fits < hopeful.memory.largest_batch_that_fits
