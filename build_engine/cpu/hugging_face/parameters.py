"""Reads a model's parameters from config.json. Keys that are absent have the defaults of transformers' classes."""

from __future__ import annotations

import math
from typing import Any

from build_engine.artifact.config_values import ConfigValues
from build_engine.artifact.model_directory import CONFIG_NAME
from build_engine.cpu.architectures import Architecture, find_by_class_name
from build_engine.cpu.checkpoint import ModelParameters
from build_engine.cpu.hugging_face.rope_settings import FULL, SLIDING, read_local_rope, read_rope
from build_engine.errors import EngineRefusedError
from llm_pipeline.executors.cpu.engine.weights import Activation, ModelShape

GEMMA3, MISTRAL = "Gemma3ForCausalLM", "MistralForCausalLM"
_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "sliding_window": 4096,
}
_DEFAULTS_OF_CLASS: dict[str, dict[str, Any]] = {
    MISTRAL: {"num_key_value_heads": 8},
    "Qwen3ForCausalLM": {"head_dim": 128},
    GEMMA3: {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    },
}
_ACTIVATIONS = {"silu": Activation.SILU, "gelu_pytorch_tanh": Activation.GELU_TANH}
# Other values than these change the logits, and the graph does not compute them.
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "use_bidirectional_attention": (False,),
    "partial_rotary_factor": (1,),
}


def config_values(values: dict[str, Any]) -> tuple[Architecture, ConfigValues]:
    """Raises EngineRefusedError if the architecture is not supported, or the weights are quantized."""
    names = values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise EngineRefusedError(
            f"{CONFIG_NAME} has architectures = {names!r}; it must be a list of one name. "
            "Use the model's original file."
        )
    architecture = find_by_class_name(names[0])
    if quantization := values.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise EngineRefusedError(
            f"the weights are quantized with {method or 'an unnamed method'}, which the CPU engine does not support. "
            "Use the original model, or a GGUF file."
        )
    config = ConfigValues(values, _DEFAULTS | _DEFAULTS_OF_CLASS.get(names[0], {}))
    for key, allowed in _REQUIRED_VALUES.items():
        config.require(key, allowed)
    return architecture, config


def read_parameters(architecture: Architecture, config: ConfigValues) -> ModelParameters:
    """Raises EngineRefusedError if a key is missing or has a value that the CPU engine does not compute."""
    width, heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    layers = config.whole("num_hidden_layers")
    head_size = config.whole("head_dim") if config.value("head_dim") is not None else width // heads
    kv_heads = config.whole("num_key_value_heads") if config.value("num_key_value_heads") is not None else heads
    is_gemma = architecture.class_name == GEMMA3
    rope = read_rope(config, head_size)
    windows = _windows(architecture.class_name, config, layers)
    shape = ModelShape(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        norm_epsilon=config.positive("rms_norm_eps"),
        rope_base=rope.base,
        windows=windows,
        embedding_scale=math.sqrt(width) if is_gemma else 1.0,
        attention_scale=_attention_scale(config, head_size) if is_gemma else None,
        activation=_activation(config, "hidden_activation" if is_gemma else "hidden_act"),
    )
    local_rope = read_local_rope(config, head_size) if is_gemma and any(windows) else None
    return ModelParameters(shape, width, config.whole("intermediate_size"), rope, local_rope)


def _activation(config: ConfigValues, key: str) -> Activation:
    config.require(key, tuple(_ACTIVATIONS))
    return _ACTIVATIONS[config.value(key)]


def _attention_scale(config: ConfigValues, head_size: int) -> float | None:
    scalar = config.positive("query_pre_attn_scalar")
    return None if scalar == head_size else float(scalar**-0.5)


def _windows(class_name: str, config: ConfigValues, layers: int) -> tuple[int, ...]:
    """Sliding windows for each layer, by the rules of each class; empty if none has one."""
    if class_name == "LlamaForCausalLM":
        return ()
    if class_name != GEMMA3 and config.optional("sliding_window") is None:
        return ()
    if class_name not in (GEMMA3, MISTRAL) and config.value("use_sliding_window") is not True:
        return ()
    window = config.whole("sliding_window")
    kinds = [FULL if is_full else SLIDING for is_full in _full_layers(class_name, config, layers)]
    if class_name != MISTRAL and (listed := config.value("layer_types")) is not None:
        is_list = isinstance(listed, list) and len(listed) == layers
        if not is_list or any(kind not in (FULL, SLIDING) for kind in listed):
            raise EngineRefusedError(
                f"{CONFIG_NAME} has layer_types = {listed!r}; it must be {layers} times {FULL} or {SLIDING}. "
                "Use another model."
            )
        kinds = listed
    windows = tuple(window if kind == SLIDING else 0 for kind in kinds)
    return windows if any(windows) else ()


def _full_layers(class_name: str, config: ConfigValues, layers: int) -> list[bool]:
    """Whether each layer attends to all tokens, if `layer_types` is absent."""
    if class_name == MISTRAL:
        return [False] * layers
    if class_name == GEMMA3:
        period = config.whole("sliding_window_pattern")
        return [(number + 1) % period == 0 for number in range(layers)]
    return [number < config.whole("max_window_layers") for number in range(layers)]
