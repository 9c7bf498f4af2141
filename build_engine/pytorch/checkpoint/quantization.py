"""Reads how the weights of a model directory are quantized, in the order in which TensorRT-LLM looks.

First hf_quant_config.json, which ModelOpt writes, then `quantization_config` in config.json: `ModelConfig` in
tensorrt_llm/_torch/model_config.py of NVIDIA/TensorRT-LLM. 1.2.0rc2 (@b35ac1b6) reads ModelOpt's file of version 0, FP8
blocks and MXFP4, and ignores anything else without a message. Later states, read without their release, also have
quantization/modelopt_config.py (ModelOpt 1, and its settings inside config.json) and compressed-tensors; they count as
1.3 here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_engine.artifact.model_directory import CONFIG_NAME, read_json_object
from build_engine.errors import EngineRefusedError

HF_QUANT_NAME = "hf_quant_config.json"
FP8_BLOCKS = "FP8_BLOCK_SCALES"
_MODELOPT = "modelopt"
_COMPRESSED = "compressed-tensors"
_SINCE_1_3 = (1, 3)
_RENAMED = {"FP8_PB_WO": FP8_BLOCKS}  # ModelOpt's name; upstream renames it too
_KV_SCHEMES = {("float", 8): "FP8", ("float", 4): "NVFP4", ("int", 8): "INT8"}
_BLOCK = 128  # rows and columns that share a scale


@dataclass(frozen=True)
class Quantization:
    """The quantization of weights on disk, under upstream's names (tensorrt_llm/quantization/mode.py, QuantAlgo)."""

    algorithm: str  # such as FP8, NVFP4, W4A16_AWQ, MXFP4, MIXED_PRECISION; NONE: only the KV cache; or a method's name
    kv_cache_algorithm: str | None  # FP8, NVFP4 or INT8; None: the cache keeps the data type of the model
    group_size: int | None
    excluded: tuple[str, ...]  # patterns of modules that are not quantized
    source: str  # the file that says so
    since: tuple[int, int] = (1, 2)  # the first release that reads this form of it

    @property
    def kv_cache_precision(self) -> str | None:
        """fp8, nvfp4 or int8, as in --kv-cache-precision."""
        return self.kv_cache_algorithm.lower() if self.kv_cache_algorithm else None


def read_quantization(model_dir: Path, config: dict[str, Any]) -> Quantization | None:
    """None if the weights are not quantized. `config` is the content of config.json.

    Raises EngineRefusedError if a file is malformed, or has block or group sizes that are not supported.
    """
    path = model_dir / HF_QUANT_NAME
    if path.is_file():
        return _read_modelopt_file(read_json_object(path))
    values = config.get("quantization_config") or _text_config(config).get("quantization_config")
    if not values:
        return None
    if not isinstance(values, dict):
        raise EngineRefusedError(
            f"{CONFIG_NAME} has quantization_config = {values!r}; it must be an object. Use the model's original file."
        )
    if _is_modelopt(values):
        inner = values.get("quantization")
        return _from_modelopt(inner if isinstance(inner, dict) else values, CONFIG_NAME, _SINCE_1_3)
    method = str(values.get("quant_method", "an unnamed method")).lower()
    if method == _COMPRESSED:
        return _from_compressed_tensors(values)
    return _from_transformers(method, values)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    return _object(config.get("text_config"))


def _is_modelopt(values: dict[str, Any]) -> bool:
    producer = values.get("producer")
    is_producer = isinstance(producer, dict) and producer.get("name") == _MODELOPT
    return is_producer or str(values.get("quant_method", "")).lower().startswith(_MODELOPT)


def _read_modelopt_file(values: dict[str, Any]) -> Quantization | None:
    """ModelOpt 0 writes an object `quantization`, ModelOpt 1 its values at the top."""
    inner = values.get("quantization")
    if isinstance(inner, dict):
        return _from_modelopt(inner, HF_QUANT_NAME, (1, 2))
    if inner is None and _is_modelopt(values):
        return _from_modelopt(values, HF_QUANT_NAME, _SINCE_1_3)
    raise EngineRefusedError(f"{HF_QUANT_NAME} has no object 'quantization'. Export the model again.")


def _from_modelopt(values: dict[str, Any], source: str, since: tuple[int, int]) -> Quantization | None:
    algorithm = values.get("quant_algo")
    kv_cache = values.get("kv_cache_quant_algo") or _kv_scheme(values.get("kv_cache_scheme"), source)
    if not isinstance(algorithm, str | None) or not isinstance(kv_cache, str | None):
        raise EngineRefusedError(
            f"{source} has quant_algo = {algorithm!r} and kv_cache_quant_algo = {kv_cache!r}; both must be names or "
            "null. Export the model again."
        )
    if algorithm is None and kv_cache is None:
        return None
    algorithm = (algorithm or "NONE").upper()
    return Quantization(
        algorithm=_RENAMED.get(algorithm, algorithm),
        kv_cache_algorithm=kv_cache.upper() if kv_cache else None,
        group_size=_group_size(values.get("group_size")),
        excluded=_names(values.get("exclude_modules") or values.get("ignore")),
        source=source,
        since=since,
    )


def _kv_scheme(scheme: object, source: str) -> str | None:
    """ModelOpt 1 and compressed-tensors: a name, or an object with type and bits."""
    if scheme is None or isinstance(scheme, str):
        return scheme
    kind = (scheme.get("type"), scheme.get("num_bits")) if isinstance(scheme, dict) else None
    found = next((name for known, name in _KV_SCHEMES.items() if kind == known), None)
    if found is None:
        raise EngineRefusedError(
            f"{source} has kv_cache_scheme = {scheme!r}; it must be one of 8-bit or 4-bit float, or 8-bit int. "
            "Export the model again."
        )
    return found


def _from_transformers(method: str, values: dict[str, Any]) -> Quantization:
    excluded = _names(values.get("modules_to_not_convert") or values.get("ignored_layers"))
    block = values.get("weight_block_size")
    if method == "fp8" and block:
        if block != [_BLOCK, _BLOCK]:
            raise _unsupported("weight_block_size", block, f"[{_BLOCK}, {_BLOCK}]")
        return Quantization(FP8_BLOCKS, None, _BLOCK, excluded, CONFIG_NAME)
    if method == "mxfp4":
        return Quantization("MXFP4", None, 32, excluded, CONFIG_NAME)
    if method == "mxfp8":
        if block and block != [1, 32]:
            raise _unsupported("weight_block_size", block, "[1, 32]")
        return Quantization("MXFP8", None, 32, excluded, CONFIG_NAME, _SINCE_1_3)
    if method == "nvfp4":
        return Quantization("NVFP4", None, 16, excluded, CONFIG_NAME, _SINCE_1_3)
    bits = values.get("bits")
    algorithm = f"{method} of {bits} bits" if bits else method
    return Quantization(algorithm, None, _group_size(values.get("group_size")), excluded, CONFIG_NAME)


def _from_compressed_tensors(values: dict[str, Any]) -> Quantization:
    """llm-compressor's checkpoints: FP8 by channel or in blocks, NVFP4, or several of them."""
    groups = values.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()) or not groups:
        raise EngineRefusedError(
            f"{CONFIG_NAME} has quantization_config.config_groups = {groups!r}; it must be an object of objects. "
            "Use the model's original file."
        )
    algorithms = {_compressed_algorithm(group) for group in groups.values()}
    return Quantization(
        algorithm=algorithms.pop() if len(algorithms) == 1 else "MIXED_PRECISION",
        kv_cache_algorithm=_kv_scheme(values.get("kv_cache_scheme"), CONFIG_NAME),
        group_size=None,
        excluded=_names(values.get("ignore")),
        source=CONFIG_NAME,
        since=_SINCE_1_3,
    )


def _compressed_algorithm(group: dict[str, Any]) -> str:
    """Upstream's rules: quantization of weights and inputs decide together."""
    weights, inputs = (_object(group.get(key)) for key in ("weights", "input_activations"))
    kind = (weights.get("type"), weights.get("num_bits"), weights.get("strategy"), inputs.get("strategy"))
    if kind == ("float", 8, "channel", "token"):
        return "FP8_PER_CHANNEL_PER_TOKEN"
    if kind == ("float", 8, "block", "group") and inputs.get("group_size") == _BLOCK:
        return FP8_BLOCKS
    if kind == ("float", 4, "tensor_group", "tensor_group") and weights.get("group_size") == 16:
        return "NVFP4"
    type_name, bits, strategy, _ = kind
    return f"{_COMPRESSED} ({bits}-bit {type_name}, by {strategy})"


def _unsupported(key: str, value: object, supported: str) -> EngineRefusedError:
    return EngineRefusedError(
        f"{CONFIG_NAME} has {key} = {value!r}; TensorRT-LLM supports {supported} only. "
        "Use another checkpoint of this model."
    )


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _group_size(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _names(value: object) -> tuple[str, ...]:
    return tuple(str(name) for name in value) if isinstance(value, list) else ()
