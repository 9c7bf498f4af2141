"""A GGUF file gives the same engine as the Hugging Face directory that it was converted from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_engine.cpu.gguf.checkpoint import GgufCheckpoint
from build_engine.cpu.hugging_face.checkpoint import HuggingFaceCheckpoint
from build_engine.cpu.weights import convert_weights
from build_engine.errors import EngineRefusedError
from llm_pipeline.executors.cpu.engine.weights import Weights
from tests.support.gguf_twins import write_gguf_twin
from tests.support.hugging_face_models import REFERENCE_MODELS, TinyDirectory

_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
_GEMMA3_CONFIG = {
    "num_hidden_layers": 7,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 16,
    "tie_word_embeddings": True,
    "rope_theta": 50000.0,
}


def engines_of(directory: Path, model: TinyDirectory, metadata: dict[str, Any], factors: Any = None) -> list[Weights]:
    path = write_gguf_twin(directory / "twin.gguf", model, metadata, factors)
    checkpoints = GgufCheckpoint(path), HuggingFaceCheckpoint(model.write(directory / "directory"))
    return [convert_weights(checkpoint, lambda _: None) for checkpoint in checkpoints]


def assert_equal(gguf: Weights, hugging_face: Weights) -> None:
    assert gguf.tensors.keys() == hugging_face.tensors.keys()
    for name, tensor in gguf.tensors.items():
        np.testing.assert_allclose(tensor, hugging_face.tensors[name], rtol=1e-6, err_msg=name)
    assert gguf.shape.norm_epsilon == pytest.approx(hugging_face.shape.norm_epsilon)
    for name in ("layers", "heads", "kv_heads", "head_size", "windows", "embedding_scale", "activation"):
        assert getattr(gguf.shape, name) == getattr(hugging_face.shape, name)
    assert gguf.shape.rope_base == hugging_face.shape.rope_base
    assert gguf.shape.rope_scale == pytest.approx(hugging_face.shape.rope_scale)
    assert gguf.shape.attention_scale == hugging_face.shape.attention_scale


@pytest.mark.parametrize(
    ("model", "metadata"),
    [
        (REFERENCE_MODELS["llama"], {}),
        (REFERENCE_MODELS["llama-biases-f16"], {}),
        (REFERENCE_MODELS["llama-head-size"], {"rope.dimension_count": 32}),
        (REFERENCE_MODELS["llama-rope-linear"], {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
        (REFERENCE_MODELS["llama-rope-linear"], {"rope.scale_linear": 4.0}),
        (REFERENCE_MODELS["llama-rope-yarn"], _YARN),
        (REFERENCE_MODELS["mistral-window"], {"attention.sliding_window": 20}),
        (REFERENCE_MODELS["qwen2"], {}),
        (REFERENCE_MODELS["qwen3"], {}),
        (TinyDirectory("Gemma3ForCausalLM", _GEMMA3_CONFIG), {"attention.sliding_window": 16}),
        (
            TinyDirectory("Gemma3ForCausalLM", {**_GEMMA3_CONFIG, "sliding_window_pattern": 3}),
            {"attention.sliding_window": 16, "attention.sliding_window_pattern": 3},
        ),
        (
            TinyDirectory(
                "Gemma3ForCausalLM",
                {
                    **_GEMMA3_CONFIG,
                    "rope_local_base_freq": 500.0,
                    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                },
            ),
            {
                "attention.sliding_window": 16,
                "attention.sliding_window_pattern": [True, True, True, True, True, False, True],
                "rope.freq_base_swa": 500.0,
                "rope.scaling.type": "linear",
                "rope.scaling.factor": 8.0,
            },
        ),
    ],
    ids=[
        "llama",
        "biases",
        "head-size",
        "linear",
        "old-linear",
        "yarn",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma3",
        "gemma3-pattern",
        "gemma3-scaled",
    ],
)
def test_both_formats_of_a_model_give_the_same_engine(
    tmp_path: Path, model: TinyDirectory, metadata: dict[str, Any]
) -> None:
    assert_equal(*engines_of(tmp_path, model, metadata))


def test_the_factors_that_llama_cpp_computes_for_llama3_give_the_same_engine(tmp_path: Path) -> None:
    """convert_hf_to_gguf.py stores the divisor of each frequency as the tensor rope_freqs."""
    factors = []
    for dimension in range(0, 16, 2):
        wavelength = 2 * math.pi * 10000.0 ** (dimension / 16)
        smooth = (32 / wavelength - 1.0) / (4.0 - 1.0)
        factors.append(1 / ((1 - min(max(smooth, 0), 1)) / 8.0 + min(max(smooth, 0), 1)))
    engines = engines_of(tmp_path, REFERENCE_MODELS["llama-rope-llama3"], {}, np.array(factors, np.float32))
    assert_equal(*engines)


def test_gemma3_27b_scales_attention_by_its_width(tmp_path: Path) -> None:
    """llama.cpp finds that model by its number of layers, because the metadata lacks the scale."""
    model = TinyDirectory(
        "Gemma3ForCausalLM",
        {**_GEMMA3_CONFIG, "num_hidden_layers": 62, "head_dim": 32, "query_pre_attn_scalar": 16},
    )
    gguf, hugging_face = engines_of(tmp_path, model, {"attention.sliding_window": 16})
    assert gguf.shape.attention_scale == hugging_face.shape.attention_scale == 0.25


@pytest.mark.parametrize("factors", [np.ones(4, np.float32), np.zeros(8, np.float32)], ids=["too few", "zero"])
def test_invalid_rope_factors_are_refused(tmp_path: Path, factors: Any) -> None:
    path = write_gguf_twin(tmp_path / "m.gguf", TinyDirectory(), {}, factors)
    with pytest.raises(EngineRefusedError, match=r"rope_freqs\.weight is not 8 positive factors"):
        convert_weights(GgufCheckpoint(path), lambda _: None)


def test_an_invalid_rope_factor_is_refused(tmp_path: Path) -> None:
    path = write_gguf_twin(tmp_path / "m.gguf", TinyDirectory(), {"rope.scaling.factor": -2.0})
    with pytest.raises(EngineRefusedError, match=r"rope scaling factor is -2\.0"):
        convert_weights(GgufCheckpoint(path), lambda _: None)


def test_a_window_pattern_of_another_length_is_refused(tmp_path: Path) -> None:
    model = TinyDirectory("Gemma3ForCausalLM", _GEMMA3_CONFIG)
    metadata = {"attention.sliding_window": 16, "attention.sliding_window_pattern": [True, False]}
    path = write_gguf_twin(tmp_path / "m.gguf", model, metadata)
    with pytest.raises(EngineRefusedError, match="has 2 entries for 7 layers"):
        convert_weights(GgufCheckpoint(path), lambda _: None)
