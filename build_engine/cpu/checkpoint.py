"""The port to a model on disk, whatever its format: gguf and hugging_face implement it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from build_engine.artifact.chat_templates import ChatTemplates
from build_engine.cpu.architectures import Architecture
from build_engine.cpu.rope import Rope
from build_engine.errors import EngineRefusedError
from build_engine.progress import BuildProgress
from llm_pipeline.engine_files.manifest import TokenIds
from llm_pipeline.executors.cpu.engine.weights import ModelShape

FloatArray: TypeAlias = "npt.NDArray[Any]"


@dataclass(frozen=True)
class ModelParameters:
    """A model's parameters as its file or config.json gives them. Raises EngineRefusedError for impossible sizes."""

    shape: ModelShape  # without a rope scale: see `rope`
    width: int
    inner: int  # rows of the MLP's gate
    rope: Rope
    local_rope: Rope | None = None  # of layers with a sliding window; None: as the others

    def __post_init__(self) -> None:
        shape = self.shape
        if shape.heads % shape.kv_heads or shape.head_size % 2:
            raise EngineRefusedError(
                f"the model has {shape.heads} heads for {shape.kv_heads} key and value heads of size "
                f"{shape.head_size}. Use its original files."
            )


class Checkpoint(Protocol):
    """A model that the CPU engine supports. Opening one raises EngineRefusedError otherwise."""

    @property
    def label(self) -> str:
        """The file's or directory's name, for messages."""
        ...

    @property
    def name(self) -> str:
        """The model's name, as free text; empty if unknown."""
        ...

    @property
    def architecture_name(self) -> str:
        """The architecture as the format spells it, for the manifest."""
        ...

    @property
    def architecture(self) -> Architecture: ...

    @property
    def quantization(self) -> str:
        """The type of the weights, such as Q4_1 or BF16."""
        ...

    @property
    def fp16_bytes(self) -> int:
        """The size of all weights in float16."""
        ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def context_length(self) -> int:
        """Maximum sequence length that the model was trained for, in tokens."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the output matrix."""
        ...

    @property
    def token_count(self) -> int:
        """The highest token id of the tokenizer, plus 1."""
        ...

    @property
    def token_ids(self) -> TokenIds: ...

    def tokenizer_json(self) -> str:
        """The content of the engine's tokenizer.json. Raises EngineRefusedError if it can't be represented exactly."""
        ...

    def chat_templates(self) -> ChatTemplates:
        """The model's chat templates, untried."""
        ...

    @property
    def parameters(self) -> ModelParameters: ...

    @property
    def parts(self) -> frozenset[str]:
        """Names of the parts that are there; architectures.py lists them."""
        ...

    def read(self, part: str) -> FloatArray:
        """A part's values, float32; matrices are [outputs, inputs], and query and key rows in half order.

        Raises EngineRefusedError, with the tensor's name in the file, if it is missing.
        """
        ...

    def sha256(self, progress: BuildProgress) -> str:
        """Reads every byte. In hex."""
        ...
