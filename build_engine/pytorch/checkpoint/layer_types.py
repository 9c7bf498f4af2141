"""Reads which layer is of which kind, as `layer_types` in config.json lists them."""

from __future__ import annotations

from build_engine.artifact.config_values import ConfigValues
from build_engine.artifact.model_directory import CONFIG_NAME
from build_engine.errors import EngineRefusedError

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
_MAX_LAYERS = 10_000  # no model comes near; a larger number is a damaged file
_STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def layer_count(config: ConfigValues) -> int:
    count = config.whole("num_hidden_layers")
    if count > _MAX_LAYERS:
        raise EngineRefusedError(f"{CONFIG_NAME} has num_hidden_layers = {count}. Use the model's original file.")
    return count


def read_layer_types(config: ConfigValues, count: int, allowed: tuple[str, ...]) -> list[str] | None:
    """One kind for each layer; None if config.json lists none."""
    listed = config.value("layer_types")
    if listed is None:
        return None
    if not isinstance(listed, list) or len(listed) != count or any(kind not in allowed for kind in listed):
        raise EngineRefusedError(
            f"{CONFIG_NAME} has layer_types = {listed!r}; it must be {count} times {' or '.join(allowed)}. "
            "Use the model's original file."
        )
    return listed


def is_sliding(config: ConfigValues, number: int, count: int) -> bool | None:
    """Whether `layer_types` lists the layer with a window; None if there is no list."""
    kinds = read_layer_types(config, count, (SLIDING, FULL))
    return None if kinds is None else kinds[number] == SLIDING


def state_bytes(config: ConfigValues) -> int:
    """Bytes of a value in a state of DeltaNet or Mamba. Upstream takes mamba_ssm_cache_dtype, or float32."""
    name = config.value("mamba_ssm_cache_dtype") or config.value("mamba_ssm_dtype") or "float32"
    return _STATE_BYTES.get(str(name).removeprefix("torch."), 4)
