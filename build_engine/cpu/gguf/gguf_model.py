"""Reads a GGUF file: metadata, tokenizer tables and weights. The only module that imports the `gguf` package.

Reads every quantization that `gguf` can dequantize. supported_models checks whether the CPU engine can run the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from build_engine.artifact.file_kinds import describe_other_file
from build_engine.cpu.gguf.tokenizer import GgufVocabulary
from build_engine.errors import EngineRefusedError

_MAGIC = b"GGUF"


@dataclass(frozen=True)
class GgufTensor:
    name: str
    shape: tuple[int, ...]  # in numpy's order: rows first
    type_name: str  # such as Q4_1
    elements: int


class GgufModel:
    """An opened GGUF file. Tensors are memory-mapped and read by `dequantized` only."""

    def __init__(self, path: Path) -> None:
        """Reads the header. Raises EngineRefusedError if the file is not GGUF, is truncated, or its tensors overlap."""
        self._reader = _open_reader(path)
        _check_ranges(path, self._reader)
        self.path = path
        self.tensors = [_describe(tensor) for tensor in self._reader.tensors]

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def name(self) -> str:
        """The model's name in the metadata; empty if unset."""
        return str(self.value("general.name") or self.value("general.basename") or "")

    @property
    def keys(self) -> list[str]:
        return [key for key in self._reader.fields if not key.startswith("GGUF.")]

    @property
    def is_little_endian(self) -> bool:
        return str(self._reader.byte_order) == "I"

    @property
    def quantization(self) -> str:
        """The declared type of the file (Q4_1, Q8_0, F16, ...), else the type of most of its elements."""
        from gguf import LlamaFileType

        declared = self.value("general.file_type")
        if declared is not None and declared in list(LlamaFileType):
            return str(LlamaFileType(declared).name).removeprefix("MOSTLY_").removeprefix("ALL_")
        elements: dict[str, int] = {}
        for tensor in self.tensors:
            elements[tensor.type_name] = elements.get(tensor.type_name, 0) + tensor.elements
        return max(elements, key=lambda name: elements[name])

    @property
    def fp16_bytes(self) -> int:
        return 2 * sum(tensor.elements for tensor in self.tensors)

    @property
    def context_length(self) -> int:
        """Maximum sequence length that the model was trained for, in tokens."""
        return self.number(f"{self.architecture}.context_length")

    @property
    def vocab_size(self) -> int:
        """Rows of the output matrix, which is the embedding if the file has no separate one."""
        rows = {tensor.name: tensor.shape[0] for tensor in self.tensors}
        return rows.get("output.weight") or rows["token_embd.weight"]

    def value(self, key: str) -> Any:
        """The metadata value of `key`, or None."""
        field = self._reader.fields.get(key)
        return None if field is None else field.contents()

    def text(self, key: str) -> str:
        return str(self._required(key))

    def number(self, key: str) -> int:
        value = self._required(key)
        if not isinstance(value, int):
            raise EngineRefusedError(f"{self.path.name}: {key} is {value!r}, not an integer. Convert the model again.")
        return value

    def _required(self, key: str) -> Any:
        value = self.value(key)
        if value is None:
            raise EngineRefusedError(
                f"{self.path.name} has no {key}. Convert the model again with a current llama.cpp."
            )
        return value

    def vocabulary(self) -> GgufVocabulary:
        """The tokenizer's tables. Raises EngineRefusedError if the file has none."""
        prefix = "tokenizer.ggml."
        eos = [self.value(prefix + key) for key in ("eos_token_id", "eot_token_id")]
        return GgufVocabulary(
            model=self.text(prefix + "model"),
            pre=str(self.value(prefix + "pre") or "default"),
            tokens=list(self._required(prefix + "tokens")),
            token_types=list(self.value(prefix + "token_type") or []),
            merges=list(self.value(prefix + "merges") or []),
            scores=list(self.value(prefix + "scores") or []),
            bos=self.value(prefix + "bos_token_id"),
            eos=tuple(dict.fromkeys(int(token) for token in eos if token is not None)),
            unknown=self.value(prefix + "unknown_token_id"),
            add_bos=self.value(prefix + "add_bos_token"),
            add_space_prefix=self.value(prefix + "add_space_prefix") is not False,
        )

    def chat_templates(self) -> tuple[tuple[str, str], ...]:
        """Names and sources of the chat templates: "default", then those that `tokenizer.chat_templates` lists."""
        key = "tokenizer.chat_template"
        sources = {"default": self.value(key)}
        sources |= {str(name): self.value(f"{key}.{name}") for name in self.value(f"{key}s") or ()}
        return tuple((name, source) for name, source in sources.items() if isinstance(source, str) and source.strip())

    def undecodable_types(self) -> list[str]:
        """Names of the tensor types in this file that `gguf` can't dequantize."""
        import gguf

        def fails(name: str) -> bool:
            kind = gguf.GGMLQuantizationType[name]
            try:
                gguf.dequantize(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], dtype=np.uint8), kind)
            except NotImplementedError:
                return True
            return False

        return [name for name in sorted({tensor.type_name for tensor in self.tensors}) if fails(name)]

    def dequantized(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor's values, float32, in numpy's order [rows, columns]. Raises EngineRefusedError if it is missing."""
        import gguf

        for tensor, raw in zip(self.tensors, self._reader.tensors, strict=True):
            if tensor.name == name:
                values: np.ndarray[Any, Any] = gguf.dequantize(raw.data, raw.tensor_type)
                return values.reshape(tensor.shape).astype(np.float32, copy=False)
        raise EngineRefusedError(f"{self.path.name} has no tensor {name}. Download it again.")


def _describe(tensor: Any) -> GgufTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return GgufTensor(str(tensor.name), shape, str(tensor.tensor_type.name), int(tensor.n_elements))


def _check_ranges(path: Path, reader: Any) -> None:
    """Raises EngineRefusedError if two tensors share bytes. The reader refuses one outside of the file's data.

    llama.cpp refuses them, too. Such a file is damaged, or made to take far more memory than its size.
    """
    end, owner = 0, ""
    for tensor in sorted(reader.tensors, key=lambda tensor: int(tensor.data_offset)):
        start, size = int(tensor.data_offset), int(tensor.n_bytes)
        if start < end and size:
            raise EngineRefusedError(
                f"{path.name}: the tensors {owner} and {tensor.name} overlap. The file is damaged. Download it again."
            )
        end, owner = max(end, start + size), str(tensor.name)


def _check_version(path: Path, field: bytes) -> None:
    """Versions 2 and 3 differ in byte order only, and both are read. Version 1 had 32-bit lengths."""
    from gguf import GGUF_VERSION

    # In a big-endian file the number is read the wrong way round; such a file is refused later, with its own message.
    version = min(int.from_bytes(field, "little"), int.from_bytes(field, "big"))
    if version == 1:
        raise EngineRefusedError(
            f"{path.name} is a GGUF file of version 1, of August 2023, which llama.cpp does not read any more either. "
            "Download a newer file of this model, or convert the original model again."
        )
    if version > GGUF_VERSION:
        raise EngineRefusedError(
            f"{path.name} is a GGUF file of version {version}; this program reads up to {GGUF_VERSION}. Update it, or "
            "use a file of an older version."
        )


def _open_reader(path: Path) -> Any:
    from gguf import GGUFReader

    with path.open("rb") as file:
        head = file.read(len(_MAGIC) + 4)
    if not head.startswith(_MAGIC):
        kind = describe_other_file(path) or "is not a GGUF file. Download it again, or convert the model to GGUF."
        raise EngineRefusedError(f"{path.name} {kind}")
    _check_version(path, head[len(_MAGIC) :])
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        # The reader has no error class of its own: it indexes past the end of a short file.
        raise EngineRefusedError(f"{path.name} is truncated or damaged ({error}). Download it again.") from error
