"""Weights on one GPU: computed from config.json, or read from the headers, which must give the same size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_engine.pytorch.checkpoint.decoder import Layer
from build_engine.pytorch.checkpoint.model_directory import read_model_directory
from build_engine.pytorch.planning.parameters import count_parameters
from build_engine.pytorch.planning.weights import stage_layers
from tests.support.pytorch_models import (
    MODELS,
    Tensors,
    decoder_of,
    dense_tensors,
    memory_of,
    tiny_config,
    write_model,
)


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


def _moe_tensors(config: dict[str, int]) -> Tensors:
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


def _mixtral_tensors(config: dict[str, int]) -> Tensors:
    """The names of Mixtral's original files."""
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    tensors = {name: entry for name, entry in dense_tensors(config).items() if ".mlp." not in name}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}.block_sparse_moe."
        tensors[f"{layer}gate.weight"] = ("BF16", (experts, hidden))
        for expert in range(experts):
            for name, shape in (("w1", (inner, hidden)), ("w2", (hidden, inner)), ("w3", (inner, hidden))):
                tensors[f"{layer}experts.{expert}.{name}.weight"] = ("BF16", shape)
    return tensors


def _latent_tensors(config: dict[str, int]) -> Tensors:
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
_MIXTRAL = tiny_config("MixtralForCausalLM", num_local_experts=8, num_experts_per_tok=2)
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
        (_MIXTRAL, _mixtral_tensors(_MIXTRAL)),
        (_LATENT, _latent_tensors(_LATENT)),
    ],
    ids=["dense", "tied", "experts", "mixtral", "latent"],
)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (1, 3)])
def test_headers_and_config_json_give_the_same_size(
    tmp_path: Path, config: dict[str, int], tensors: Tensors, tp: int, pp: int
) -> None:
    """Two ways to one number: each tensor by its name, or each layer by its shape."""
    read = memory_of(read_model_directory(write_model(tmp_path / "a", config, tensors)), tp=tp, pp=pp)
    computed = memory_of(read_model_directory(write_model(tmp_path / "b", config)), tp=tp, pp=pp)
    assert (read.are_weights_read, computed.are_weights_read) == (True, False)
    assert read.weights_bytes == computed.weights_bytes


def _gpt_oss_tensors(config: dict[str, int]) -> Tensors:
    """Experts in MXFP4: blocks of 32 values in 16 bytes, and one byte of scale for each."""
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    query, kv = config["num_attention_heads"] * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    tensors = {name: entry for name, entry in dense_tensors(config).items() if ".mlp." not in name}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        for name, size in (("q_proj", query), ("k_proj", kv), ("v_proj", kv), ("o_proj", hidden)):
            tensors[f"{layer}self_attn.{name}.bias"] = ("BF16", (size,))
        tensors[f"{layer}self_attn.sinks"] = ("BF16", (config["num_attention_heads"],))
        tensors[f"{layer}mlp.router.weight"] = ("BF16", (experts, hidden))
        tensors[f"{layer}mlp.router.bias"] = ("BF16", (experts,))
        for name, outputs, inputs in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
            prefix = f"{layer}mlp.experts.{name}"
            tensors[f"{prefix}_blocks"] = ("U8", (experts, outputs, inputs // 32, 16))
            tensors[f"{prefix}_scales"] = ("U8", (experts, outputs, inputs // 32))
            tensors[f"{prefix}_bias"] = ("BF16", (experts, outputs))
    return tensors


def _nemotron_tensors(config: dict[str, Any]) -> Tensors:
    """Mamba, experts and attention, each a layer of its own."""
    hidden, heads, experts = config["hidden_size"], config["mamba_num_heads"], config["n_routed_experts"]
    inner, query = heads * config["mamba_head_dim"], config["num_attention_heads"] * config["head_dim"]
    kv, channels = config["num_key_value_heads"] * config["head_dim"], inner + 2 * config["n_groups"] * 64
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.embeddings.weight": (config["vocab_size"], hidden),
        "backbone.norm_f.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    for number, kind in enumerate(config["hybrid_override_pattern"]):
        layer = f"backbone.layers.{number}."
        shapes[f"{layer}norm.weight"] = (hidden,)
        if kind == "M":
            shapes |= {f"{layer}mixer.{name}": (heads,) for name in ("A_log", "D", "dt_bias")}
            shapes[f"{layer}mixer.in_proj.weight"] = (inner + channels + heads, hidden)
            shapes[f"{layer}mixer.conv1d.weight"] = (channels, 1, config["conv_kernel"])
            shapes[f"{layer}mixer.conv1d.bias"] = (channels,)
            shapes[f"{layer}mixer.norm.weight"] = (inner,)
            shapes[f"{layer}mixer.out_proj.weight"] = (hidden, inner)
        elif kind == "*":
            for name, shape in (
                ("q", (query, hidden)),
                ("k", (kv, hidden)),
                ("v", (kv, hidden)),
                ("o", (hidden, query)),
            ):
                shapes[f"{layer}mixer.{name}_proj.weight"] = shape
        else:
            width, shared = config["moe_intermediate_size"], config["moe_shared_expert_intermediate_size"]
            shapes[f"{layer}mixer.gate.weight"] = (experts, hidden)
            shapes[f"{layer}mixer.gate.e_score_correction_bias"] = (experts,)
            latent = config.get("moe_latent_size")
            if latent:
                shapes[f"{layer}mixer.fc1_latent_proj.weight"] = (latent, hidden)
                shapes[f"{layer}mixer.fc2_latent_proj.weight"] = (hidden, latent)
            parts = [(f"experts.{expert}", width, latent or hidden) for expert in range(experts)]
            for part, size, outer in [*parts, ("shared_experts", shared, hidden)]:
                shapes[f"{layer}mixer.{part}.up_proj.weight"] = (size, outer)
                shapes[f"{layer}mixer.{part}.down_proj.weight"] = (outer, size)
    return {name: ("BF16", shape) for name, shape in shapes.items()}


_GPT_OSS = tiny_config(
    "GptOssForCausalLM",
    num_local_experts=8,
    num_experts_per_tok=2,
    sliding_window=128,
    quantization_config={"quant_method": "mxfp4"},
)
_NEMOTRON = tiny_config(
    "NemotronHForCausalLM",
    hybrid_override_pattern="ME*M",
    mamba_num_heads=8,
    mamba_head_dim=32,
    n_groups=4,
    ssm_state_size=64,
    conv_kernel=4,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    moe_shared_expert_intermediate_size=128,
)
_LATENT_NEMOTRON = _NEMOTRON | {"moe_latent_size": 128}


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        (_GPT_OSS, _gpt_oss_tensors(_GPT_OSS)),
        (_NEMOTRON, _nemotron_tensors(_NEMOTRON)),
        (_LATENT_NEMOTRON, _nemotron_tensors(_LATENT_NEMOTRON)),
    ],
    ids=["gpt-oss", "nemotron-h", "nemotron-h with latent experts"],
)
def test_headers_of_special_layers_give_the_size_of_config_json_too(
    tmp_path: Path, config: dict[str, Any], tensors: Tensors
) -> None:
    """Exactly on one GPU; on two, vectors are counted whole when they are read, and in parts when computed."""
    sizes = []
    for tp in (1, 2):
        read = memory_of(read_model_directory(write_model(tmp_path / "a", config, tensors)), tp=tp)
        computed = memory_of(read_model_directory(write_model(tmp_path / "b", config)), tp=tp)
        sizes.append((read.weights_bytes, computed.weights_bytes))
    assert sizes[0][0] == sizes[0][1]
    assert sizes[1][0] == pytest.approx(sizes[1][1], rel=0.01)


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
