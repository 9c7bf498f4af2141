"""A GGUF file as a checkpoint: llama.cpp's names and metadata in the terms of the CPU engine."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from build_engine.artifact.chat_templates import ChatTemplates
from build_engine.cpu.architectures import Architecture, find_by_gguf_name
from build_engine.cpu.checkpoint import FloatArray, ModelParameters
from build_engine.cpu.gguf.gguf_model import GgufModel
from build_engine.cpu.gguf.parameters import read_parameters
from build_engine.cpu.gguf.supported_models import part_name, require_supported
from build_engine.cpu.gguf.tokenizer import GgufVocabulary, build_tokenizer
from build_engine.errors import EngineRefusedError
from build_engine.progress import BuildProgress
from llm_pipeline.engine_files.manifest import TokenIds, sha256_of


class GgufCheckpoint:
    """Implements Checkpoint. Raises EngineRefusedError if the file is damaged or the CPU engine does not support it."""

    def __init__(self, path: Path) -> None:
        self._model = GgufModel(path)
        require_supported(self._model)
        self._tensors = {part_name(tensor.name): tensor.name for tensor in self._model.tensors}

    @property
    def label(self) -> str:
        return self._model.path.name

    @property
    def name(self) -> str:
        return self._model.name or self._model.path.stem

    @property
    def architecture_name(self) -> str:
        return self._model.architecture

    @cached_property
    def architecture(self) -> Architecture:
        return find_by_gguf_name(self._model.architecture)

    @property
    def quantization(self) -> str:
        return self._model.quantization

    @property
    def fp16_bytes(self) -> int:
        return self._model.fp16_bytes

    @property
    def size_bytes(self) -> int:
        return self._model.path.stat().st_size

    @property
    def context_length(self) -> int:
        return self._model.context_length

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def token_count(self) -> int:
        return len(self._vocabulary.tokens)

    @property
    def token_ids(self) -> TokenIds:
        vocabulary = self._vocabulary
        return TokenIds(bos=vocabulary.bos, eos=list(vocabulary.eos), add_bos=vocabulary.adds_bos)

    def tokenizer_json(self) -> str:
        return str(build_tokenizer(self._vocabulary).to_str(pretty=False))

    def chat_templates(self) -> ChatTemplates:
        vocabulary = self._vocabulary
        return ChatTemplates(
            templates=self._model.chat_templates(),
            bos_token="" if vocabulary.bos is None else vocabulary.tokens[vocabulary.bos],
            eos_token=vocabulary.tokens[vocabulary.eos[0]] if vocabulary.eos else "",
        )

    @cached_property
    def parameters(self) -> ModelParameters:
        return read_parameters(self._model)

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def read(self, part: str) -> FloatArray:
        if part not in self._tensors:
            raise EngineRefusedError(f"{self.label} has no tensor for {part}. Download it again.")
        values = self._model.dequantized(self._tensors[part])
        return self._in_halves(values, part) if self.architecture.name == "llama" else values

    def sha256(self, progress: BuildProgress) -> str:
        with progress.step(f"hash {self.label}"):
            return sha256_of(self._model.path)

    @cached_property
    def _vocabulary(self) -> GgufVocabulary:
        return self._model.vocabulary()

    def _in_halves(self, values: FloatArray, part: str) -> FloatArray:
        """Reorders the query and key rows of a llama model, [heads * head_size, ...], for rotary embeddings in halves.

        llama.cpp stores them for rotary embeddings of adjacent pairs.
        """
        shape = self.parameters.shape
        heads = {"query": shape.heads, "key": shape.kv_heads}.get(part.split(".")[-2])
        if heads is None or len(values) != heads * shape.head_size:  # a wrong size is refused by weights.py
            return values
        rows = values.reshape(heads, shape.head_size // 2, 2, -1).swapaxes(1, 2)
        return np.ascontiguousarray(rows.reshape(values.shape))
