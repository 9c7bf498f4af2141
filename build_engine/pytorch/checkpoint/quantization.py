"""Reads how the weights of a model directory are quantized, in the order in which TensorRT-LLM looks.

First hf_quant_config.json, which ModelOpt writes, then `quantization_config` in config.json: `ModelConfig` in
tensorrt_llm/_torch/model_config.py (NVIDIA/TensorRT-LLM@b35ac1b6: load_modelopt_quant_config, load_hf_quant_config).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_engine.artifact.model_directory import CONFIG_NAME, read_json_object
from build_engine.errors import EngineRefusedError

HF_QUANT_NAME = "hf_quant_config.json"
MODELOPT = "modelopt"
_FP8_BLOCK_ALIASES = ("FP8_PB_WO", "FP8_BLOCK_SCALES")  # upstream renames the first


@dataclass(frozen=True)
class Quantization:
    """The quantization of weights on disk, under upstream's names (tensorrt_llm/quantization/mode.py, QuantAlgo)."""

    algorithm: str  # such as FP8, NVFP4, W4A16_AWQ, FP8_BLOCK_SCALES, MXFP4, MIXED_PRECISION, or a method's name
    kv_cache_algorithm: str | None  # FP8, NVFP4 or INT8; None: the cache keeps the data type of the model
    group_size: int | None
    excluded: tuple[str, ...]  # patterns of modules that are not quantized
    source: str  # the file that says so

    @property
    def kv_cache_precision(self) -> str | None:
        """fp8, nvfp4 or int8, as in --kv-cache-precision."""
        return self.kv_cache_algorithm.lower() if self.kv_cache_algorithm else None


def read_quantization(model_dir: Path, config: dict[str, Any]) -> Quantization | None:
    """None if the weights are not quantized. `config` is the content of config.json.

    Raises EngineRefusedError if a file is malformed.
    """
    path = model_dir / HF_QUANT_NAME
    if path.is_file():
        values = read_json_object(path).get("quantization")
        if not isinstance(values, dict):
            raise EngineRefusedError(f"{HF_QUANT_NAME} has no object 'quantization'. Export the model again.")
        return _from_modelopt(values, HF_QUANT_NAME)
    values = config.get("quantization_config") or _text_config(config).get("quantization_config")
    if not values:
        return None
    if not isinstance(values, dict):
        raise EngineRefusedError(
            f"{CONFIG_NAME} has quantization_config = {values!r}; it must be an object. Use the model's original file."
        )
    method = str(values.get("quant_method", "an unnamed method")).lower()
    if method == MODELOPT:
        # ModelOpt writes the same values to both files; config.json lists excluded modules as `ignore`.
        return _from_modelopt({"exclude_modules": values.get("ignore")} | values, CONFIG_NAME)
    return _from_transformers(method, values)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) else {}


def _from_modelopt(values: dict[str, Any], source: str) -> Quantization | None:
    algorithm, kv_cache = values.get("quant_algo"), values.get("kv_cache_quant_algo")
    if kv_cache is None and isinstance(scheme := values.get("kv_cache_scheme"), dict):
        kv_cache = f"{str(scheme.get('type', '')).upper()[:2]}{scheme.get('num_bits')}"  # {"type": "float", ...: 8}
        kv_cache = {"FL8": "FP8", "FL4": "NVFP4", "IN8": "INT8"}.get(kv_cache, kv_cache)
    if not isinstance(algorithm, str | None) or not isinstance(kv_cache, str | None):
        raise EngineRefusedError(
            f"{source} has quant_algo = {algorithm!r} and kv_cache_quant_algo = {kv_cache!r}; both must be names or "
            "null. Export the model again."
        )
    if algorithm is None and kv_cache is None:
        return None
    algorithm = (algorithm or "NONE").upper()
    return Quantization(
        algorithm="FP8_BLOCK_SCALES" if algorithm in _FP8_BLOCK_ALIASES else algorithm,
        kv_cache_algorithm=kv_cache.upper() if kv_cache else None,
        group_size=_group_size(values.get("group_size")),
        excluded=_names(values.get("exclude_modules")),
        source=source,
    )


def _from_transformers(method: str, values: dict[str, Any]) -> Quantization:
    """Upstream loads two methods besides ModelOpt's: fp8 with blocks (DeepSeek, Qwen) and mxfp4 (gpt-oss)."""
    excluded = _names(values.get("modules_to_not_convert") or values.get("ignore"))
    block = values.get("weight_block_size")
    if method == "fp8" and block:
        if list(block) != [128, 128]:
            raise EngineRefusedError(
                f"{CONFIG_NAME} has weight_block_size = {block!r}; TensorRT-LLM supports [128, 128] only. "
                "Use another checkpoint of this model."
            )
        return Quantization("FP8_BLOCK_SCALES", None, 128, excluded, CONFIG_NAME)
    if method == "mxfp4":
        return Quantization("MXFP4", None, 32, excluded, CONFIG_NAME)
    bits = values.get("bits")
    algorithm = f"W{bits}A16_{method.upper()}" if method in ("awq", "gptq") and bits else method
    return Quantization(algorithm, None, _group_size(values.get("group_size")), excluded, CONFIG_NAME)


def _group_size(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _names(value: object) -> tuple[str, ...]:
    return tuple(str(name) for name in value) if isinstance(value, list) else ()
