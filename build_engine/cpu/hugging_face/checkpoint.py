"""A Hugging Face model directory as a checkpoint: transformers' names and settings in the terms of the CPU engine."""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property
from pathlib import Path

import numpy as np

from build_engine.artifact.chat_templates import ChatTemplates, read_chat_templates
from build_engine.artifact.model_directory import (
    CONFIG_NAME,
    hash_model_files,
    model_size_bytes,
    read_json_object,
    read_token_ids,
)
from build_engine.artifact.model_tokenizer import EngineTokenizer, read_tokenizer
from build_engine.artifact.safetensors_headers import StoredTensor
from build_engine.cpu.architectures import missing_parts
from build_engine.cpu.checkpoint import FloatArray, ModelParameters
from build_engine.cpu.hugging_face.parameters import GEMMA3, config_values, read_parameters
from build_engine.cpu.hugging_face.rope_settings import context_length
from build_engine.cpu.hugging_face.safetensors_files import list_tensors, read_tensor
from build_engine.errors import EngineRefusedError
from build_engine.progress import BuildProgress
from llm_pipeline.engine_files.manifest import TokenIds

_PARTS = {"model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "vocabulary"}
_LAYER_PARTS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
    "self_attn.q_norm": "query_norm",
    "self_attn.k_norm": "key_norm",
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "attention_output",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_GEMMA3_LAYER_PARTS = _LAYER_PARTS | {
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
_LAYER_TENSOR = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")
_UNUSED_TENSOR = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # old exports; recomputed


class HuggingFaceCheckpoint:
    """Implements Checkpoint.

    Raises EngineRefusedError if the directory is incomplete or the CPU engine does not support the model.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.architecture, self._config = config_values(read_json_object(path / CONFIG_NAME))
            self.parameters: ModelParameters = read_parameters(self.architecture, self._config)
            self._tensors = self._list_parts()
        except FileNotFoundError:
            raise EngineRefusedError(
                f"{path} has no {CONFIG_NAME}. Pass a Hugging Face model directory or a GGUF file."
            ) from None
        except EngineRefusedError as error:
            raise EngineRefusedError(f"{self.label}: {error}") from error

    @property
    def label(self) -> str:
        return self._path.resolve().name

    @property
    def name(self) -> str:
        return self.label

    @property
    def architecture_name(self) -> str:
        return self.architecture.class_name

    @property
    def quantization(self) -> str:
        elements = Counter[str]()
        for tensor in self._tensors.values():
            elements[tensor.type_name] += tensor.elements
        return elements.most_common(1)[0][0]

    @property
    def fp16_bytes(self) -> int:
        return 2 * sum(tensor.elements for tensor in self._tensors.values())

    @property
    def size_bytes(self) -> int:
        return model_size_bytes(self._path)

    @property
    def context_length(self) -> int:
        return context_length(self._config)

    @property
    def vocab_size(self) -> int:
        return self._config.whole("vocab_size")

    @property
    def token_count(self) -> int:
        return self._tokenizer.token_count

    @property
    def token_ids(self) -> TokenIds:
        ids = read_token_ids(self._path)
        for token in (ids.bos, *ids.eos):
            if token is not None and not 0 <= token < self.vocab_size:
                raise EngineRefusedError(
                    f"{self.label}: special token id {token} is outside the vocabulary of {self.vocab_size} tokens. "
                    "Use the model's original files."
                )
        return ids

    def tokenizer_json(self) -> str:
        return self._tokenizer.json

    def chat_templates(self) -> ChatTemplates:
        return read_chat_templates(self._path)

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def read(self, part: str) -> FloatArray:
        if part not in self._tensors:
            raise EngineRefusedError(f"{self.label} has no tensor for {part}. Download it again.")
        values = read_tensor(self._tensors[part])
        # Gemma's norms store the weight's difference from 1.
        is_offset = self.architecture.class_name == GEMMA3 and part.endswith("norm.weight")
        return values + np.float32(1) if is_offset else values

    def sha256(self, progress: BuildProgress) -> str:
        with progress.step(f"hash {self.label}", model_size_bytes(self._path)) as advance:
            return hash_model_files(self._path, advance)

    @cached_property
    def _tokenizer(self) -> EngineTokenizer:
        return read_tokenizer(self._path, self.vocab_size)

    def _list_parts(self) -> dict[str, StoredTensor]:
        """The tensors by part. Raises EngineRefusedError for missing tensors and those that the graph would ignore."""
        is_tied = bool(self._config.value("tie_word_embeddings"))
        parts: dict[str, StoredTensor] = {}
        unknown: list[str] = []
        for name, tensor in list_tensors(self._path).items():
            part = self._part_name(name)
            if part is None:
                if not _UNUSED_TENSOR.fullmatch(name):
                    unknown.append(name)
            elif not (is_tied and part == "vocabulary.weight"):  # some exports have a copy of the embedding
                parts[part] = tensor
        if unknown:
            raise EngineRefusedError(
                f"the CPU engine does not support tensor {min(unknown)} ({len(unknown)} unsupported). "
                "Use another model."
            )
        missing = missing_parts(self.architecture, self.parameters.shape.layers, parts)
        if not is_tied and "vocabulary.weight" not in parts:
            missing.append("vocabulary.weight")
        if missing:
            raise EngineRefusedError(f"it has no tensor for {missing[0]} ({len(missing)} missing). Download it again.")
        return parts

    def _part_name(self, tensor: str) -> str | None:
        """The part that a tensor is; None if the model has no such part."""
        stem, _, kind = tensor.rpartition(".")
        if stem in _PARTS and kind == "weight":
            return f"{_PARTS[stem]}.weight"
        names = _GEMMA3_LAYER_PARTS if self.architecture.class_name == GEMMA3 else _LAYER_PARTS
        match = _LAYER_TENSOR.fullmatch(tensor)
        if not match or match[2] not in names or int(match[1]) >= self.parameters.shape.layers:
            return None
        part = f"{names[match[2]]}.{match[3]}"
        return f"layers.{int(match[1])}.{part}" if part in self.architecture.layer_parts() else None
