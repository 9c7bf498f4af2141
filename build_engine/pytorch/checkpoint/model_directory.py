"""Reads a model directory for the PyTorch runtime, without any engine library: configuration, quantization, sizes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_engine.artifact.config_values import ConfigValues
from build_engine.artifact.model_directory import CONFIG_NAME, GENERATION_CONFIG_NAME, read_json_object
from build_engine.errors import EngineRefusedError
from build_engine.model_names import checked_model_name, slug
from build_engine.pytorch.checkpoint.decoder import Decoder
from build_engine.pytorch.checkpoint.families import read_decoder, read_plain_decoder
from build_engine.pytorch.checkpoint.quantization import HF_QUANT_NAME, Quantization, read_quantization
from build_engine.pytorch.checkpoint.stored_weights import StoredWeights, read_stored_weights
from build_engine.targets.precisions import BFLOAT16, DTYPE_BYTES
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME

# Copied or linked into an engine directory besides the weights, where the model has them.
_COMPANIONS = (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    HF_QUANT_NAME,
    "quant_cfg.json",  # layers of MIXED_PRECISION
    "preprocessor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_IGNORED_KEYS = ("_name_or_path", "transformers_version")  # differ between copies of one model


@dataclass(frozen=True)
class ModelDirectory:
    path: Path
    name: str  # of the engine's directory
    architecture: str  # class name, such as LlamaForCausalLM
    dtype: str  # of computations and of weights that are not quantized, as TensorRT-LLM spells it
    decoder: Decoder | None  # None: config.json lacks what an estimate needs
    knows_layers: bool  # False: the decoder is an approximation, full attention in every layer
    max_seq_len: int  # tokens
    vocab_size: int
    quantization: Quantization | None
    weights: StoredWeights | None  # None: the directory has no safetensors files
    has_tokenizer: bool  # tokenizer.json, which preprocess needs
    sha256: str  # of config.json and the quantization's files

    @property
    def companion_files(self) -> list[Path]:
        """Files besides weights and tokenizer.json that `LLM(model=...)` may read; all exist."""
        return [self.path / name for name in _COMPANIONS if (self.path / name).is_file()]


def read_model_directory(path: Path, name: str | None = None) -> ModelDirectory:
    """Raises EngineRefusedError if config.json is missing or invalid, or the weights are incomplete.

    Neither the weights nor the tokenizer need to be there: a plan can be made from config.json alone.
    """
    config = _read_config(path)
    text = _text_values(config)
    architecture = _architecture(config)
    decoder = read_decoder(architecture, text)
    knows_layers = decoder is not None
    decoder = decoder or _plain_decoder(text)
    values = ConfigValues(text, {"vocab_size": decoder and decoder.vocab_size})
    return ModelDirectory(
        path=path,
        name=checked_model_name(name or slug(path.resolve().name)),
        architecture=architecture,
        dtype=_dtype(config, text),
        decoder=decoder,
        knows_layers=knows_layers,
        max_seq_len=decoder.max_seq_len if decoder else values.whole("max_position_embeddings"),
        vocab_size=values.whole("vocab_size"),
        quantization=read_quantization(path, config),
        weights=read_stored_weights(path),
        has_tokenizer=(path / TOKENIZER_NAME).is_file(),
        sha256=_digest(path, config),
    )


def read_architecture(path: Path) -> tuple[str, Quantization | None]:
    """The class name and the quantization, without the weights. Raises EngineRefusedError like read_model_directory."""
    config = _read_config(path)
    return _architecture(config), read_quantization(path, config)


def _plain_decoder(text: dict[str, Any]) -> Decoder | None:
    try:
        return read_plain_decoder(text)
    except EngineRefusedError:  # an encoder, or keys of its own
        return None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise EngineRefusedError(f"No model directory {path}. Use a Hugging Face model directory.")
    try:
        return read_json_object(path / CONFIG_NAME)
    except FileNotFoundError:
        raise EngineRefusedError(f"{path} has no {CONFIG_NAME}. Use a Hugging Face model directory.") from None


def _text_values(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the language model: nested in `text_config` if the model has other parts, such as vision."""
    text = config.get("text_config")
    if not text:
        return config
    if not isinstance(text, dict):
        raise EngineRefusedError(
            f"{CONFIG_NAME} has text_config = {text!r}; it must be an object. Use the model's original file."
        )
    return {key: value for key, value in config.items() if key != "text_config"} | text


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise EngineRefusedError(
            f"{CONFIG_NAME} has architectures = {names!r}; it must be a list. Use the model's original file."
        )
    return names[0]


def _dtype(config: dict[str, Any], text: dict[str, Any]) -> str:
    """bfloat16 if config.json has none, as upstream assumes (ModelConfig.torch_dtype)."""
    keys = ("torch_dtype", "dtype")
    value = next((values[key] for values in (config, text) for key in keys if values.get(key)), BFLOAT16)
    name = str(value).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise EngineRefusedError(f"{CONFIG_NAME} has torch_dtype = {value!r}. Use weights in {', '.join(DTYPE_BYTES)}.")
    return name


def _digest(path: Path, config: dict[str, Any]) -> str:
    content: dict[str, Any] = {key: value for key, value in config.items() if key not in _IGNORED_KEYS}
    for name in (HF_QUANT_NAME, "quant_cfg.json"):
        if (path / name).is_file():
            content[f"file:{name}"] = read_json_object(path / name)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
