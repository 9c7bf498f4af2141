"""Reads a GGUF model: what it is, its tokenizer and its weights. The only module that knows the `gguf` package.

Every quantisation that `gguf` can undo is accepted. The architectures are those of OpenVINO GenAI's GGUF reader, and
source_rules refuses what that reader would drop without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from build_engine.errors import EngineRefusedError
from build_engine.gguf_tokenizer import GgufVocabulary
from build_engine.progress import Advance

_MAGIC = b"GGUF"
_FILE_TYPE_F16 = 1  # general.file_type MOSTLY_F16
# Describe the source's packing, which the dequantised copy no longer has.
_PACKING_KEYS = frozenset({"general.file_type", "general.quantization_version", "general.alignment"})


@dataclass(frozen=True)
class GgufTensor:
    name: str
    shape: tuple[int, ...]  # as numpy has it: rows first
    type_name: str  # such as Q4_1
    elements: int


class GgufSource:
    """An opened GGUF file. Tensors are mapped, not read, until `write_f16` takes them one at a time."""

    def __init__(self, path: Path) -> None:
        """Open and read the header. EngineRefusedError when it is no GGUF file, or not a whole one."""
        self._reader = _open_reader(path)
        self.path = path
        self.tensors = [_describe(tensor) for tensor in self._reader.tensors]

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def name(self) -> str:
        """The model's own name, as its author wrote it; empty when the file has none."""
        return str(self.value("general.name") or self.value("general.basename") or "")

    @property
    def keys(self) -> list[str]:
        return [key for key in self._reader.fields if not key.startswith("GGUF.")]

    @property
    def is_little_endian(self) -> bool:
        return str(self._reader.byte_order) == "I"

    @property
    def quantization(self) -> str:
        """The file's declared type (Q4_1, Q8_0, F16, ...), or the type that most of its elements have."""
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
        """Tokens that the model was trained for."""
        return self.number(f"{self.architecture}.context_length")

    @property
    def vocab_size(self) -> int:
        """Rows of the output matrix, which is the embedding where the file holds no other."""
        rows = {tensor.name: tensor.shape[0] for tensor in self.tensors}
        return rows.get("output.weight") or rows["token_embd.weight"]

    def value(self, key: str) -> Any:
        """The metadata value of a key, None when the file has no such key."""
        field = self._reader.fields.get(key)
        return None if field is None else field.contents()

    def text(self, key: str) -> str:
        return str(self._required(key))

    def number(self, key: str) -> int:
        value = self._required(key)
        if not isinstance(value, int):
            raise EngineRefusedError(f"{self.path.name}: {key} is {value!r}, not a whole number.")
        return value

    def _required(self, key: str) -> Any:
        value = self.value(key)
        if value is None:
            raise EngineRefusedError(
                f"{self.path.name} has no {key}: convert the model again with a current llama.cpp."
            )
        return value

    def vocabulary(self) -> GgufVocabulary:
        """The tokenizer's tables. EngineRefusedError when the file holds none."""
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

    def undecodable_types(self) -> list[str]:
        """Tensor types in this file that `gguf` can't dequantise."""
        import gguf

        def fails(name: str) -> bool:
            kind = gguf.GGMLQuantizationType[name]
            try:
                gguf.dequantize(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], dtype=np.uint8), kind)
            except NotImplementedError:
                return True
            return False

        return [name for name in sorted({tensor.type_name for tensor in self.tensors}) if fails(name)]

    def write_f16(self, path: Path, advance: Advance) -> None:
        """Write the same model with matrices in F16 and vectors (norms, biases) in F32; one tensor in memory at a time.

        `advance` is called with the fp16 bytes of each tensor. EngineRefusedError when a weight does not fit in F16.
        """
        from gguf import GGUFWriter

        writer = GGUFWriter(path, self.architecture)
        try:
            self._copy_metadata(writer)
            for tensor in self.tensors:
                dtype = _target_dtype(tensor)
                size = tensor.elements * dtype.itemsize
                writer.add_tensor_info(tensor.name, tensor.shape, dtype, size)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor, data in self._dequantised():
                writer.write_tensor_data(data)
                advance(2 * tensor.elements)
        finally:
            writer.close()

    def _copy_metadata(self, writer: Any) -> None:
        writer.add_file_type(_FILE_TYPE_F16)
        for key in self.keys:
            if key in _PACKING_KEYS or key == "general.architecture":  # the writer has written the latter
                continue
            types = self._reader.fields[key].types
            writer.add_key_value(key, self.value(key), types[0], sub_type=types[-1] if len(types) > 1 else None)

    def _dequantised(self) -> Iterator[tuple[GgufTensor, np.ndarray[Any, Any]]]:
        import gguf

        for tensor, raw in zip(self.tensors, self._reader.tensors, strict=True):
            values = gguf.dequantize(raw.data, raw.tensor_type).reshape(tensor.shape)
            with np.errstate(over="ignore"):  # judged by the next line
                data = np.ascontiguousarray(values.astype(_target_dtype(tensor), copy=False))
            if not np.isfinite(data).all():
                raise EngineRefusedError(
                    f"Tensor {tensor.name} holds values that fp16 can't: no fp16 engine is possible."
                )
            yield tensor, data


def _target_dtype(tensor: GgufTensor) -> np.dtype[Any]:
    return np.dtype(np.float16 if len(tensor.shape) > 1 else np.float32)


def _describe(tensor: Any) -> GgufTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return GgufTensor(str(tensor.name), shape, str(tensor.tensor_type.name), int(tensor.n_elements))


def _open_reader(path: Path) -> Any:
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise EngineRefusedError(f"{path.name} is not a GGUF file. Safetensors and others must be converted first.")
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        # The reader indexes past the end of a short file; there is no error class of its own.
        raise EngineRefusedError(f"{path.name} is cut short or damaged ({error}). Download it again.") from error
