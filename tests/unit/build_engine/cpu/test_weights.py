"""Weights in the engine's layout: the values of the GGUF file, fused and reordered, in float16 or int8."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_engine.cpu.gguf.checkpoint import GgufCheckpoint
from build_engine.cpu.hugging_face.checkpoint import HuggingFaceCheckpoint
from build_engine.cpu.weights import convert_weights, quantize_weights
from build_engine.errors import EngineRefusedError
from llm_pipeline.executors.cpu.engine.weights import Weights, WeightsError, load_weights, save_weights
from tests.support.hugging_face_models import REFERENCE_MODELS
from tests.support.tiny_models import TinyModel, write_gguf


def weights_of(path: Path) -> Weights:
    return convert_weights(GgufCheckpoint(path), lambda _: None)


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0", "Q5_1", "BF16", "F16", "F32"])
def test_matrices_become_f16_and_vectors_stay_f32(tmp_path: Path, quantization: str) -> None:
    original = write_gguf(tmp_path / "m.gguf", TinyModel(arch="qwen2", pre="qwen2"), quantization)
    advanced: list[int] = []
    source = GgufCheckpoint(tmp_path / "m.gguf")
    tensors = convert_weights(source, advanced.append).tensors
    for tensor in tensors.values():
        assert tensor.dtype == (np.float16 if tensor.ndim > 1 else np.float32)
    for part in ("weight", "bias"):
        rows = np.concatenate([original[f"blk.1.attn_{name}.{part}"] for name in "qkv"])
        np.testing.assert_array_equal(tensors[f"layers.1.qkv.{part}"].astype(np.float32), rows)
    gate_up = np.concatenate([original["blk.0.ffn_gate.weight"], original["blk.0.ffn_up.weight"]])
    np.testing.assert_array_equal(tensors["layers.0.gate_up.weight"].astype(np.float32), gate_up)
    assert sum(advanced) == source.fp16_bytes
    assert source.quantization == quantization


def test_query_and_key_rows_of_llama_are_reordered_into_halves(tiny_gguf: Path) -> None:
    model = TinyModel()
    original = model.weights()["blk.0.attn_q.weight"].astype(np.float16)
    query = weights_of(tiny_gguf).tensors["layers.0.qkv.weight"][: model.width]
    for head in range(model.heads):
        rows = slice(head * model.head, (head + 1) * model.head)
        np.testing.assert_allclose(query[rows][: model.head // 2], original[rows][::2], atol=0.02)
        np.testing.assert_allclose(query[rows][model.head // 2 :], original[rows][1::2], atol=0.02)


def test_weights_too_large_for_fp16_are_refused(tmp_path: Path) -> None:
    huge = TinyModel().weights()
    huge["token_embd.weight"][0, 0] = 1e6
    with np.errstate(over="ignore"):
        write_gguf(tmp_path / "m.gguf", TinyModel(), weights=huge)
    with pytest.raises(EngineRefusedError, match=r"embedding\.weight contains values outside the range of fp16"):
        weights_of(tmp_path / "m.gguf")


def test_a_model_with_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    short = TinyModel().weights()
    del short["blk.1.attn_k.weight"]
    write_gguf(tmp_path / "m.gguf", TinyModel(), weights=short)
    with pytest.raises(EngineRefusedError, match=r"no tensor blk\.1\.attn_k\.weight"):
        weights_of(tmp_path / "m.gguf")


def test_int8_keeps_every_weight_within_half_a_step_of_its_row(tiny_gguf: Path) -> None:
    exact = weights_of(tiny_gguf)
    small = quantize_weights(exact)
    for name in ("layers.0.qkv", "layers.1.down", "vocabulary"):
        values = exact.tensors.get(f"{name}.weight", exact.tensors["embedding.weight"]).astype(np.float32)
        steps, scale = small.tensors[f"{name}.weight"], small.tensors[f"{name}.scale"]
        assert steps.dtype == np.int8
        assert scale.shape == (len(values), 1)
        assert (np.abs(steps * scale - values) <= 0.501 * scale).all()
    assert small.tensors["embedding.weight"].dtype == np.float16
    assert small.tensors["norm.weight"].dtype == np.float32


def test_saved_weights_load_unchanged(tmp_path: Path, tiny_gguf: Path) -> None:
    saved = quantize_weights(weights_of(tiny_gguf))
    save_weights(tmp_path / "model.safetensors", saved)
    loaded = load_weights(tmp_path)
    assert loaded.shape == saved.shape
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], tensor)


def test_parameters_of_a_model_with_windows_load_unchanged(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(REFERENCE_MODELS["gemma3-layer-types"].write(tmp_path / "gemma3"))
    saved = convert_weights(checkpoint, lambda _: None)
    save_weights(tmp_path / "model.safetensors", saved)
    assert load_weights(tmp_path).shape == saved.shape
    assert saved.shape.windows == (16, 0, 0, 16)
    assert saved.shape.rope_scale != 1


def test_a_model_without_new_features_has_a_file_that_earlier_versions_read(tmp_path: Path, tiny_gguf: Path) -> None:
    save_weights(tmp_path / "model.safetensors", weights_of(tiny_gguf))
    content = (tmp_path / "model.safetensors").read_bytes()
    shape = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["shape"])
    assert list(shape) == ["layers", "heads", "kv_heads", "head_size", "norm_epsilon", "rope_base"]


@pytest.mark.parametrize("change", [{"windows": (4,)}, {"activation": "relu"}], ids=["windows", "activation"])
def test_invalid_parameters_are_refused(tmp_path: Path, tiny_gguf: Path, change: dict[str, Any]) -> None:
    weights = weights_of(tiny_gguf)
    save_weights(tmp_path / "model.safetensors", Weights(replace(weights.shape, **change), weights.tensors))
    with pytest.raises(WeightsError, match="can't be read as a model"):
        load_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x02\0\0\0\0\0\0\0{}"], ids=["empty", "text", "no shape"])
def test_an_invalid_weights_file_is_named_in_the_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors can't be read.*--force"):
        load_weights(tmp_path)


def test_the_error_for_missing_weights_mentions_earlier_versions(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="engines of earlier versions do not have it"):
        load_weights(tmp_path)
