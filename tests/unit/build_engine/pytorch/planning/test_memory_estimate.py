"""The memory estimate against published figures and logs, and the properties that every estimate has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build_engine.gpu.planning.memory_model import GIB
from build_engine.pytorch.checkpoint.decoder import Decoder, Layer
from build_engine.pytorch.checkpoint.model_directory import ModelDirectory, read_model_directory
from build_engine.pytorch.planning.kv_cache import TOKENS_PER_BLOCK
from build_engine.pytorch.planning.memory import estimate_memory
from build_engine.pytorch.planning.parameters import count_parameters
from build_engine.pytorch.planning.plan import PyTorchMemory, PyTorchSpec
from build_engine.pytorch.planning.planner import PyTorchRequest, resolve
from build_engine.pytorch.planning.weights import stage_layers
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
    dense_tensors,
    pytorch_plan,
    pytorch_request,
    pytorch_requests,
    tiny_config,
    write_model,
)


def memory_of(model: str | ModelDirectory = "llama-3.1-8b", target: str = "b300", **options: Any) -> PyTorchMemory:
    memory = pytorch_plan(model, target, **options).memory
    assert memory is not None
    return memory


def decoder_of(name: str) -> Decoder:
    decoder = MODELS[name].decoder
    assert decoder is not None
    return decoder


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


# --- Weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "precision", "bytes_of_a_value"),
    [("llama-3.1-70b", "bf16", 2.0), ("llama-3.1-70b", "fp8", 1.0), ("llama-3.1-70b", "nvfp4", 0.5625)],
)
def test_linear_layers_take_the_bits_of_their_format(model: str, precision: str, bytes_of_a_value: float) -> None:
    decoder = decoder_of(model)
    tables = 2 * decoder.vocab_size * decoder.hidden_size
    expected = (count_parameters(decoder) - tables) * bytes_of_a_value + tables * 2
    weights = memory_of(model, precision=precision).weights_bytes
    assert weights == pytest.approx(expected, rel=0.001)


def test_weights_of_deepseek_include_the_copy_that_upstream_keeps() -> None:
    """k_b_proj_trans: 128 heads x 512 x 128 in FP8 in each of 61 layers."""
    decoder = decoder_of("deepseek-v3")
    copies = 61 * 128 * 512 * 128
    tables = 2 * decoder.vocab_size * decoder.hidden_size
    expected = count_parameters(decoder) + tables + copies
    assert memory_of("deepseek-v3").weights_bytes == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("tp", [2, 4])
def test_tensor_parallelism_halves_the_weights_but_for_what_every_gpu_has(model: str, tp: int) -> None:
    whole, part = (memory_of(model, tp=split).weights_bytes for split in (1, tp))
    assert whole / tp <= part <= whole / tp * 1.1


@pytest.mark.parametrize("model", ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-120b"])
def test_sharing_out_experts_takes_the_same_memory_as_splitting_them(model: str) -> None:
    split, shared = (memory_of(model, tp=8, ep=ep).weights_bytes for ep in (1, 8))
    assert shared == pytest.approx(split, rel=0.01)


@pytest.mark.parametrize("pp", [2, 3])
def test_pipeline_stages_share_the_layers(pp: int) -> None:
    whole, part = (memory_of("llama-3.1-70b", pp=stages).weights_bytes for stages in (1, pp))
    assert whole / pp <= part <= whole / pp * 1.1


@given(st.integers(0, 200), st.integers(1, 40))
def test_stages_have_all_layers_in_order_and_differ_by_one(count: int, pp: int) -> None:
    """Like torch.tensor_split."""
    layers = tuple(Layer(norms=number) for number in range(count))
    stages = stage_layers(layers, pp)
    assert [layer for stage in stages for layer in stage] == list(layers)
    sizes = [len(stage) for stage in stages]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def _moe_tensors(config: dict[str, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Qwen 3 with experts: the MLP of each layer is replaced, and queries and keys have norms."""
    hidden, inner, experts = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
    tensors = {name: entry for name, entry in dense_tensors(config).items() if ".mlp." not in name}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        tensors[f"{layer}mlp.gate.weight"] = ("BF16", (experts, hidden))
        for norm in ("q_norm", "k_norm"):
            tensors[f"{layer}self_attn.{norm}.weight"] = ("BF16", (config["head_dim"],))
        for expert in range(experts):
            prefix = f"{layer}mlp.experts.{expert}."
            tensors[f"{prefix}gate_proj.weight"] = tensors[f"{prefix}up_proj.weight"] = ("BF16", (inner, hidden))
            tensors[f"{prefix}down_proj.weight"] = ("BF16", (hidden, inner))
    return tensors


def _latent_tensors(config: dict[str, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """DeepSeek's attention with the MLP of its first layers."""
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = (config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    query_rank = config["q_lora_rank"]
    shapes: dict[str, tuple[int, ...]] = {
        "q_a_proj": (query_rank, hidden),
        "q_a_layernorm": (query_rank,),
        "q_b_proj": (heads * (nope + rope), query_rank),
        "kv_a_proj_with_mqa": (rank + rope, hidden),
        "kv_a_layernorm": (rank,),
        "kv_b_proj": (heads * (nope + value), rank),
        "o_proj": (hidden, heads * value),
    }
    tensors = {name: entry for name, entry in dense_tensors(config).items() if ".self_attn." not in name}
    for number in range(config["num_hidden_layers"]):
        for name, shape in shapes.items():
            tensors[f"model.layers.{number}.self_attn.{name}.weight"] = ("BF16", shape)
    return tensors


_MOE = tiny_config("Qwen3MoeForCausalLM", num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128)
_LATENT = tiny_config(
    "DeepseekV3ForCausalLM",
    q_lora_rank=64,
    kv_lora_rank=32,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    moe_intermediate_size=64,
    n_routed_experts=8,
    num_experts_per_tok=2,
    first_k_dense_replace=4,
)
_DENSE = tiny_config("LlamaForCausalLM")


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        (_DENSE, dense_tensors(_DENSE)),
        (_DENSE | {"tie_word_embeddings": True}, dense_tensors(_DENSE)),  # with a copy that is not loaded
        (_MOE, _moe_tensors(_MOE)),
        (_LATENT, _latent_tensors(_LATENT)),
    ],
    ids=["dense", "tied", "experts", "latent"],
)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (1, 3)])
def test_headers_and_config_json_give_the_same_size(
    tmp_path: Path, config: dict[str, int], tensors: dict[str, tuple[str, tuple[int, ...]]], tp: int, pp: int
) -> None:
    """Two ways to one number: each tensor by its name, or each layer by its shape."""
    read = memory_of(read_model_directory(write_model(tmp_path / "a", config, tensors)), tp=tp, pp=pp)
    computed = memory_of(read_model_directory(write_model(tmp_path / "b", config)), tp=tp, pp=pp)
    assert (read.are_weights_read, computed.are_weights_read) == (True, False)
    assert read.weights_bytes == computed.weights_bytes


@pytest.mark.parametrize("draft", ["model.layers.4.mlp.up_proj.weight", "mtp.layers.0.mlp.up_proj.weight"])
def test_layers_for_speculative_decoding_are_not_loaded(tmp_path: Path, draft: str) -> None:
    tensors = dense_tensors(_DENSE)
    plain = memory_of(read_model_directory(write_model(tmp_path / "a", _DENSE, tensors)))
    with_draft = memory_of(
        read_model_directory(write_model(tmp_path / "b", _DENSE, tensors | {draft: ("BF16", (512, 256))}))
    )
    assert with_draft.weights_bytes == plain.weights_bytes


def test_every_gpu_has_the_vision_encoder(tmp_path: Path) -> None:
    tensors = dense_tensors(_DENSE)
    vision = {"model.visual.blocks.9.attn.qkv.weight": ("BF16", (128, 128))}
    plain = memory_of(read_model_directory(write_model(tmp_path / "a", _DENSE, tensors)), tp=4)
    seeing = memory_of(read_model_directory(write_model(tmp_path / "b", _DENSE, tensors | vision)), tp=4)
    assert seeing.weights_bytes - plain.weights_bytes == 2 * 128 * 128


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
