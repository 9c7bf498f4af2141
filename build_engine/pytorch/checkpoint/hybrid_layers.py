"""The layers of hybrid models: attention in some layers, a state of constant size in the others."""

from __future__ import annotations

from typing import Any

from build_engine.artifact.config_values import ConfigValues
from build_engine.artifact.model_directory import CONFIG_NAME
from build_engine.errors import EngineRefusedError
from build_engine.pytorch.checkpoint.decoder import Attention, DeltaNet, Experts, FeedForward, Layer, Mamba2, Mlp
from build_engine.pytorch.checkpoint.layer_types import FULL, LINEAR, layer_count, read_layer_types

_MAMBA, _ATTENTION, _EXPERTS, _MLP = _PARTS = "M", "*", "E", "-"
# Newer files have a list of names instead of the pattern; transformers 5 renamed two, and omits num_hidden_layers.
_BLOCK_TYPES = {
    "mamba": _MAMBA,
    LINEAR: _MAMBA,
    "attention": _ATTENTION,
    FULL: _ATTENTION,
    "moe": _EXPERTS,
    "mlp": _MLP,
}


def qwen_hybrid_layers(config: ConfigValues, attention: Attention) -> list[Layer]:
    """Qwen3-Next and Qwen 3.5: every fourth layer has attention, the others a gated delta rule."""
    delta = DeltaNet(
        key_heads=config.whole("linear_num_key_heads"),
        value_heads=config.whole("linear_num_value_heads"),
        key_dim=config.whole("linear_key_head_dim"),
        value_dim=config.whole("linear_value_head_dim"),
        kernel=config.whole("linear_conv_kernel_dim"),
    )
    feed_forward = _qwen_feed_forward(config)
    count = layer_count(config)
    kinds = read_layer_types(config, count, (LINEAR, FULL)) or _kinds_by_interval(config, count)
    return [Layer(attention if kind == FULL else delta, feed_forward) for kind in kinds]


def _kinds_by_interval(config: ConfigValues, count: int) -> list[str]:
    interval = config.whole("full_attention_interval")
    return [FULL if (number + 1) % interval == 0 else LINEAR for number in range(count)]


def _qwen_feed_forward(config: ConfigValues) -> FeedForward:
    if not config.count("num_experts"):
        return Mlp(config.whole("intermediate_size"))
    shared = config.count("shared_expert_intermediate_size")
    return Experts(
        count=config.whole("num_experts"),
        per_token=config.whole("num_experts_per_tok"),
        inner=config.whole("moe_intermediate_size"),
        shared_inner=shared,
        has_shared_gate=shared > 0,
    )


def nemotron_h_layers(config: ConfigValues, attention: Attention) -> list[Layer]:
    """Each layer is one part with one norm: Mamba, attention, experts or an MLP."""
    layers = []
    for kind in _pattern(config):
        if kind == _MAMBA:
            layers.append(Layer(_mamba(config), norms=1))
        elif kind == _ATTENTION:
            layers.append(Layer(attention, norms=1))
        else:
            layers.append(Layer(None, _experts(config) if kind == _EXPERTS else _mlp(config), norms=1))
    return layers


def _pattern(config: ConfigValues) -> str:
    pattern: Any = config.value("hybrid_override_pattern")
    listed = config.value("layers_block_type")
    is_counted = isinstance(listed, list) and listed and config.value("num_hidden_layers") is None
    count = len(listed) if is_counted else layer_count(config)
    if pattern is None and isinstance(listed, list):
        pattern = "".join(_BLOCK_TYPES.get(str(name), "?") for name in listed)
    if not isinstance(pattern, str) or len(pattern) != count or set(pattern) - set(_PARTS):
        raise EngineRefusedError(
            f"{CONFIG_NAME} has hybrid_override_pattern = {pattern!r}; it must be {count} characters of "
            f"{' '.join(_PARTS)}. Use the model's original file."
        )
    return pattern


def _mamba(config: ConfigValues) -> Mamba2:
    has_conv_bias = config.value("use_conv_bias")
    return Mamba2(
        heads=config.whole("mamba_num_heads"),
        head_dim=config.whole("mamba_head_dim"),
        groups=config.whole("n_groups"),
        state_size=config.whole("ssm_state_size"),
        kernel=config.whole("conv_kernel"),
        has_conv_bias=has_conv_bias is None or bool(has_conv_bias),
        has_bias=bool(config.value("mamba_proj_bias")),
    )


def _experts(config: ConfigValues) -> Experts:
    """Nemotron 3 Super and Ultra have experts of a smaller width. Upstream: modeling_nemotron_h.py @00620eb0."""
    return Experts(
        count=config.whole("n_routed_experts"),
        per_token=config.whole("num_experts_per_tok"),
        inner=config.whole("moe_intermediate_size"),
        shared_inner=config.count("n_shared_experts", 1) * config.count("moe_shared_expert_intermediate_size"),
        has_gate=False,
        has_correction_bias=True,
        latent=config.whole_or_none("moe_latent_size"),
    )


def _mlp(config: ConfigValues) -> Mlp:
    return Mlp(config.whole("intermediate_size"), has_gate=False, has_bias=bool(config.value("mlp_bias")))
