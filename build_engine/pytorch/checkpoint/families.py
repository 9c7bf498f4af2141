"""Reads the layers of each model family from config.json. Keys that are absent have the defaults of transformers.

An architecture that is not here may still be served: upstream's list decides (architectures.py). Its plan then needs
the sizes of the weights, and estimates the KV cache as full attention in every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from build_engine.artifact.config_values import ConfigValues
from build_engine.artifact.model_directory import CONFIG_NAME
from build_engine.errors import EngineRefusedError
from build_engine.pytorch.checkpoint.decoder import (
    Attention,
    Decoder,
    Experts,
    FeedForward,
    LatentAttention,
    Layer,
    Mixer,
    Mlp,
)
from build_engine.pytorch.checkpoint.hybrid_layers import nemotron_h_layers, qwen_hybrid_layers
from build_engine.pytorch.checkpoint.layer_types import is_sliding, layer_count, state_bytes

Values = dict[str, Any]
_GEMMA3_DEFAULTS: Values = {  # transformers' Gemma3TextConfig
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
}
_DEFAULTS: dict[str, Values] = {
    "MistralForCausalLM": {"num_key_value_heads": 8},
    "Mistral3ForConditionalGeneration": {"num_key_value_heads": 8},
    "MixtralForCausalLM": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    "Qwen3ForCausalLM": {"head_dim": 128},
    "Qwen3MoeForCausalLM": {"head_dim": 128},
    "Gemma3ForCausalLM": _GEMMA3_DEFAULTS,
    "Gemma3ForConditionalGeneration": _GEMMA3_DEFAULTS,
    "GptOssForCausalLM": {"head_dim": 64, "sliding_window": 128},
}


def read_decoder(architecture: str, values: Values) -> Decoder | None:
    """None if the layers of this architecture are unknown here. Raises EngineRefusedError for an invalid value."""
    reader = _READERS.get(architecture)
    if reader is None:
        return None
    config = ConfigValues(values, _DEFAULTS.get(architecture, {}))
    layers = tuple(reader(config, architecture))
    return Decoder(
        hidden_size=config.whole("hidden_size"),
        vocab_size=config.whole("vocab_size"),
        max_seq_len=config.whole("max_position_embeddings"),
        tied_embeddings=bool(config.value("tie_word_embeddings")),
        layers=layers,
        state_bytes_per_value=state_bytes(config),
        norm_vectors=2 if architecture == "NemotronForCausalLM" else 1,
    )


def read_plain_decoder(values: Values) -> Decoder:
    """The decoder that an unknown architecture is estimated as: attention in every layer, from the common keys.

    Raises EngineRefusedError if a key is missing.
    """
    config = ConfigValues(values, {})
    is_latent = config.value("kv_lora_rank") is not None
    mixer: Mixer = _latent_attention(config) if is_latent else _attention(config)
    return Decoder(
        hidden_size=config.whole("hidden_size"),
        vocab_size=config.whole("vocab_size"),
        max_seq_len=config.whole("max_position_embeddings"),
        tied_embeddings=bool(config.value("tie_word_embeddings")),
        layers=(Layer(mixer),) * layer_count(config),
    )


def _attention(config: ConfigValues, **fields: Any) -> Attention:
    heads = config.whole("num_attention_heads")
    has_kv_heads, has_head_dim = (config.value(key) is not None for key in ("num_key_value_heads", "head_dim"))
    return Attention(
        heads=heads,
        kv_heads=config.whole("num_key_value_heads") if has_kv_heads else heads,
        head_dim=config.whole("head_dim") if has_head_dim else max(1, config.whole("hidden_size") // heads),
        **fields,
    )


def _latent_attention(config: ConfigValues) -> LatentAttention:
    return LatentAttention(
        heads=config.whole("num_attention_heads"),
        query_rank=config.whole_or_none("q_lora_rank"),
        kv_rank=config.whole("kv_lora_rank"),
        nope_dim=config.whole("qk_nope_head_dim"),
        rope_dim=config.whole("qk_rope_head_dim"),
        value_dim=config.whole("v_head_dim"),
    )


def _dense_layers(config: ConfigValues, architecture: str) -> list[Layer]:
    """Llama, Mistral, Qwen 2 and Qwen 3."""
    has_bias = bool(config.value("attention_bias"))
    has_windows = architecture.startswith("Mistral") or config.value("use_sliding_window") is True
    window = config.whole_or_none("sliding_window") if has_windows else None
    mlp = Mlp(config.whole("intermediate_size"), has_bias=bool(config.value("mlp_bias")))
    fields = {
        "has_qkv_bias": has_bias or architecture == "Qwen2ForCausalLM",  # Qwen 2 has no setting for it
        "has_output_bias": has_bias,
        "has_qk_norm": architecture == "Qwen3ForCausalLM",
    }
    count = layer_count(config)
    return [
        Layer(_attention(config, window=window if _has_window(config, number, count) else None, **fields), mlp)
        for number in range(count)
    ]


def _has_window(config: ConfigValues, number: int, count: int) -> bool:
    """Qwen's first `max_window_layers` attend to all tokens; `layer_types` wins."""
    listed = is_sliding(config, number, count)
    first = config.value("max_window_layers")
    return listed if listed is not None else not isinstance(first, int) or number >= first


def _mixtral_layers(config: ConfigValues, _architecture: str) -> list[Layer]:
    window = config.whole_or_none("sliding_window")
    experts = Experts(
        config.whole("num_local_experts"), config.whole("num_experts_per_tok"), config.whole("intermediate_size")
    )
    return [Layer(_attention(config, window=window), experts)] * layer_count(config)


def _qwen_moe_layers(config: ConfigValues, architecture: str) -> list[Layer]:
    """Qwen 2 and 3 with experts; `mlp_only_layers` and those between the sparse steps have an MLP.

    transformers 5 writes `num_local_experts` for Qwen 3.
    """
    is_qwen3 = architecture.startswith("Qwen3")
    shared = 0 if is_qwen3 else config.whole("shared_expert_intermediate_size")
    experts = Experts(
        count=config.whole_or_none("num_local_experts") or config.whole("num_experts"),
        per_token=config.whole("num_experts_per_tok"),
        inner=config.whole("moe_intermediate_size"),
        shared_inner=shared,
        has_shared_gate=shared > 0,
    )
    listed, step = config.value("mlp_only_layers"), config.whole_or_none("decoder_sparse_step") or 1
    dense = listed if isinstance(listed, list) else []
    attention = _attention(config, has_qk_norm=is_qwen3, has_qkv_bias=not is_qwen3)

    def feed_forward(number: int) -> FeedForward:
        is_dense = number in dense or (number + 1) % step != 0
        return Mlp(config.whole("intermediate_size")) if is_dense else experts

    return [Layer(attention, feed_forward(number)) for number in range(layer_count(config))]


def _deepseek_layers(config: ConfigValues, _architecture: str) -> list[Layer]:
    """DeepSeek V3 and Kimi K2: the first layers have an MLP, the others experts."""
    inner = config.whole("moe_intermediate_size")
    shared = config.count("n_shared_experts")
    experts = Experts(
        count=config.whole("n_routed_experts"),
        per_token=config.whole("num_experts_per_tok"),
        inner=inner,
        shared_inner=shared * inner,
        has_correction_bias=config.value("topk_method") in (None, "noaux_tc"),
    )
    first, step = config.count("first_k_dense_replace"), config.whole_or_none("moe_layer_freq") or 1
    mlp, attention = Mlp(config.whole("intermediate_size")), _latent_attention(config)
    return [
        Layer(attention, experts if number >= first and number % step == 0 else mlp)
        for number in range(layer_count(config))
    ]


def _gpt_oss_layers(config: ConfigValues, _architecture: str) -> list[Layer]:
    """Every other layer attends to a window; all matrices have biases."""
    experts = Experts(
        count=config.whole("num_local_experts"),
        per_token=config.whole("num_experts_per_tok"),
        inner=config.whole("intermediate_size"),
        has_bias=True,
    )
    count, window = layer_count(config), config.whole("sliding_window")
    layers = []
    for number in range(count):
        listed = is_sliding(config, number, count)
        has_window = number % 2 == 0 if listed is None else listed
        attention = _attention(
            config, window=window if has_window else None, has_qkv_bias=True, has_output_bias=True, has_sinks=True
        )
        layers.append(Layer(attention, experts))
    return layers


def _gemma3_layers(config: ConfigValues, _architecture: str) -> list[Layer]:
    """Five layers with a window, then one without; four norms in each layer."""
    count, window = layer_count(config), config.whole("sliding_window")
    period = config.whole("sliding_window_pattern")
    mlp = Mlp(config.whole("intermediate_size"))
    layers = []
    for number in range(count):
        listed = is_sliding(config, number, count)
        has_window = (number + 1) % period != 0 if listed is None else listed
        layers.append(Layer(_attention(config, window=window if has_window else None, has_qk_norm=True), mlp, norms=4))
    return layers


def _nemotron_layers(config: ConfigValues, _architecture: str) -> list[Layer]:
    """Nemotron 3 and 4, Minitron: an MLP without a gate, and norms with a bias."""
    has_bias = bool(config.value("attention_bias"))
    attention = _attention(config, has_qkv_bias=has_bias, has_output_bias=has_bias)
    mlp = Mlp(config.whole("intermediate_size"), has_gate=False, has_bias=bool(config.value("mlp_bias")))
    return [Layer(attention, mlp)] * layer_count(config)


def _qwen_hybrid(config: ConfigValues, _architecture: str) -> list[Layer]:
    return qwen_hybrid_layers(config, _attention(config, has_qk_norm=True, has_gate=True))


def _nemotron_h(config: ConfigValues, _architecture: str) -> list[Layer]:
    head_dim = config.value("head_dim") or config.value("attention_head_dim")
    if not isinstance(head_dim, int):
        raise EngineRefusedError(
            f"{CONFIG_NAME} has neither head_dim nor attention_head_dim as an integer. Use the model's original file."
        )
    attention = Attention(config.whole("num_attention_heads"), config.whole("num_key_value_heads"), head_dim)
    return nemotron_h_layers(config, attention)


_READERS: dict[str, Callable[[ConfigValues, str], list[Layer]]] = {
    **dict.fromkeys(
        (
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "Mistral3ForConditionalGeneration",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
        ),
        _dense_layers,
    ),
    "MixtralForCausalLM": _mixtral_layers,
    **dict.fromkeys(("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"), _qwen_moe_layers),
    "DeepseekV3ForCausalLM": _deepseek_layers,
    "GptOssForCausalLM": _gpt_oss_layers,
    **dict.fromkeys(("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"), _gemma3_layers),
    "NemotronForCausalLM": _nemotron_layers,
    "NemotronHForCausalLM": _nemotron_h,
    **dict.fromkeys(
        (
            "Qwen3NextForCausalLM",
            "Qwen3_5ForCausalLM",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForCausalLM",
            "Qwen3_5MoeForConditionalGeneration",
        ),
        _qwen_hybrid,
    ),
}
