"""Reads the rotary embedding from config.json, as written by transformers 4 and 5.

Version 4 has `rope_theta` and `rope_scaling`; version 5 has `rope_parameters` with both, in models with two kinds of
layers one for each kind.
"""

from __future__ import annotations

from build_engine.artifact.config_values import ConfigValues
from build_engine.artifact.model_directory import CONFIG_NAME
from build_engine.cpu.rope import Rope, base_frequencies, scale_like_llama3, scale_like_yarn, yarn_attention_factor
from build_engine.errors import EngineRefusedError

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, in `layer_types` too
DEFAULT, LINEAR, LLAMA3, YARN = "default", "linear", "llama3", "yarn"
_KINDS = (DEFAULT, LINEAR, LLAMA3, YARN)


def read_rope(config: ConfigValues, head_size: int) -> Rope:
    """The rope of layers without a sliding window. Raises EngineRefusedError for an unsupported kind."""
    settings = _settings(config, FULL)
    return _rope(config, settings, _base(config, settings, "rope_theta"), head_size)


def read_local_rope(config: ConfigValues, head_size: int) -> Rope:
    """The rope of Gemma's layers with a sliding window: version 4 never scales it."""
    settings = _settings(config, SLIDING)
    rope = _rope(config, settings, _base(config, settings, "rope_local_base_freq"), head_size)
    if rope.scale != 1:
        raise EngineRefusedError(
            f"{CONFIG_NAME} has a yarn rope in layers with a sliding window, which the CPU engine does not support. "
            "Use another model."
        )
    return rope


def context_length(config: ConfigValues) -> int:
    """The trained length in tokens, `max_position_embeddings`.

    With yarn, that may be the length before or after scaling; the other one is `original_max_position_embeddings`
    times the factor, and the larger one counts.
    """
    positions = config.whole("max_position_embeddings")
    settings = _settings(config, FULL)
    if settings is None or _kind(settings) != YARN or settings.value("factor") is None:
        return positions
    return max(positions, int(_original_length(config, settings) * settings.positive("factor")))


def _settings(config: ConfigValues, layers: str) -> ConfigValues | None:
    """The settings of one kind of layer; None if config.json has none. Of both spellings, the older one counts."""
    if layers == FULL and (scaling := config.table("rope_scaling")):
        return scaling
    if parameters := config.table("rope_parameters"):
        of_layers = parameters.table(layers)
        is_by_layers = parameters.value(FULL) is not None or parameters.value(SLIDING) is not None
        return of_layers if is_by_layers else parameters
    return None


def _base(config: ConfigValues, settings: ConfigValues | None, key: str) -> float:
    if settings and settings.value("rope_theta") is not None:
        return settings.positive("rope_theta")
    return config.positive(key)


def _kind(settings: ConfigValues) -> object:
    kind = settings.value("rope_type")
    return settings.value("type") or DEFAULT if kind is None else kind


def _original_length(config: ConfigValues, settings: ConfigValues) -> float:
    """The length before scaling: beside the settings as in Phi-3's config.json, in them, or the trained length."""
    for values in (config, settings):
        if values.value("original_max_position_embeddings") is not None:
            return values.positive("original_max_position_embeddings")
    return config.positive("max_position_embeddings")


def _rope(config: ConfigValues, settings: ConfigValues | None, base: float, head_size: int) -> Rope:
    frequencies = base_frequencies(base, head_size)
    if settings is None:
        return Rope(base, frequencies)
    settings.require("partial_rotary_factor", (1,))
    kind = _kind(settings)
    if kind == DEFAULT:
        return Rope(base, frequencies)
    if kind == LINEAR:
        return Rope(base, frequencies / settings.positive("factor"))
    original = _original_length(config, settings)
    if kind == LLAMA3:
        factor, low = settings.positive("factor"), settings.positive("low_freq_factor")
        high = settings.positive("high_freq_factor")
        if high <= low:
            raise EngineRefusedError(
                f"{CONFIG_NAME} has high_freq_factor = {high}, not above low_freq_factor = {low}. "
                "Use the model's original file."
            )
        return Rope(base, scale_like_llama3(frequencies, factor=factor, low=low, high=high, original_length=original))
    if kind == YARN:
        return _yarn(settings, base, head_size, config.positive("max_position_embeddings"), original)
    raise EngineRefusedError(
        f"{CONFIG_NAME} has the rope type {kind!r}, which the CPU engine does not support. "
        f"It supports {', '.join(_KINDS)}. Use another model."
    )


def _yarn(settings: ConfigValues, base: float, head_size: int, positions: float, original: float) -> Rope:
    def number(key: str, default: float) -> float:
        return default if settings.value(key) is None else settings.positive(key)

    factor = number("factor", positions / original)
    frequencies = scale_like_yarn(
        base_frequencies(base, head_size),
        base=base,
        factor=factor,
        original_length=original,
        beta_fast=number("beta_fast", 32),
        beta_slow=number("beta_slow", 1),
        truncate=settings.value("truncate") is not False,
    )
    scale = yarn_attention_factor(factor)
    if settings.value("mscale") and settings.value("mscale_all_dim"):
        weight, weight_of_all = settings.positive("mscale"), settings.positive("mscale_all_dim")
        scale = yarn_attention_factor(factor, weight) / yarn_attention_factor(factor, weight_of_all)
    return Rope(base, frequencies, number("attention_factor", scale))
