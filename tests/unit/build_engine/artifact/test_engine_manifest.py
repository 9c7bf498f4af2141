"""Validation of manifest.json, and loading of manifests without a GPU build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError, Runtime

SHA = "0123456789abcdef" * 4
DOCUMENT: dict[str, Any] = {
    "format_version": 1,
    "target": "cpu",
    "precision": "fp16",
    "model_name": "tiny",
    "source": {"name": "tiny.gguf", "sha256": SHA, "size_bytes": 1, "architecture": "llama", "quantization": "F16"},
    "tools": {"openvino": "2026.4"},
    "limits": {"context_length": 128, "vocab_size": 300},
    "tokens": {"bos": 1, "eos": [2], "add_bos": False},
    "created": "2026-01-01T00:00:00+00:00",
    "files": {"tokenizer.json": {"sha256": SHA, "size_bytes": 1}},
}
GPU: dict[str, Any] = {
    "gpu_name": "NVIDIA L4",
    "sm": 89,
    "driver": "590.44.01",
    "tensorrt_llm": "1.2.1",
    "tensorrt": "10.14.1.48",
    "tp": 1,
    "pp": 1,
    "kv_cache_precision": "fp8",
    "max_batch_size": 8,
    "max_num_tokens": 8192,
    "has_paged_context": True,
}

PYTORCH: dict[str, Any] = {
    "architecture": "LlamaForCausalLM",
    "tensorrt_llm": "1.2.1",
    "sm": 90,
    "tp": 1,
    "pp": 1,
    "max_batch_size": 8,
    "max_num_tokens": 8192,
    "is_linked": True,
}


def load(directory: Path, **changes: Any) -> EngineManifest:
    (directory / "manifest.json").write_text(json.dumps(DOCUMENT | changes))
    return EngineManifest.load(directory)


def test_a_manifest_without_a_gpu_build_loads(tmp_path: Path) -> None:
    assert load(tmp_path).gpu is None


def test_optional_keys_of_a_gpu_build_may_be_missing(tmp_path: Path) -> None:
    gpu = load(tmp_path, gpu=GPU).gpu
    assert gpu
    assert (gpu.cuda, gpu.calibration) == (None, None)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../b", "./a", "a//b", "a/", "", "..", "C:\\b", "a\\..\\b"]
)
def test_a_file_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match="not a plain path below the engine directory"):
        load(tmp_path, files={name: {"sha256": SHA, "size_bytes": 1}})


def test_a_file_in_a_folder_is_accepted(tmp_path: Path) -> None:
    assert "lora/0.bin" in load(tmp_path, files={"lora/0.bin": {"sha256": SHA, "size_bytes": 0}}).files


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n"])
def test_a_hash_is_64_hex_digits(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ManifestError, match="sha256"):
        load(tmp_path, files={"a": {"sha256": digest, "size_bytes": 1}})


@pytest.mark.parametrize("change", [{"tp": 0}, {"sm": "90a"}, {"unknown": 1}, {"max_batch_size": 0}])
def test_a_gpu_build_is_validated(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="gpu"):
        load(tmp_path, gpu=GPU | change)


def test_a_broken_link_is_named_with_its_target(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("/models/tiny/tokenizer.json")
    manifest = load(tmp_path, pytorch=PYTORCH)
    with pytest.raises(ManifestError, match=r"links to /models/tiny/tokenizer\.json, which .* Mount .* or .* --copy"):
        manifest.check_files(tmp_path)


@pytest.mark.parametrize("change", [{"tp": 0}, {"ep": 0}, {"kv_cache_precision": "int8"}, {"unknown": 1}])
def test_a_model_directory_is_validated(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="pytorch"):
        load(tmp_path, pytorch=PYTORCH | change)


def test_a_manifest_has_one_runtime(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="gpu and pytorch exclude each other"):
        load(tmp_path, gpu=GPU, pytorch=PYTORCH)


@pytest.mark.parametrize(
    ("builds", "runtime", "executor"),
    [
        ({}, "cpu", "cpu"),
        ({"gpu": GPU}, "engine", "tensorrt_llm"),
        ({"pytorch": PYTORCH}, "pytorch", "tensorrt_llm_pytorch"),
    ],
    ids=["cpu", "engine", "pytorch"],
)
def test_an_engine_of_another_runtime_is_refused_with_the_executor_that_serves_it(
    tmp_path: Path, builds: dict[str, Any], runtime: Runtime, executor: str
) -> None:
    manifest = load(tmp_path, **builds)
    assert manifest.runtime == runtime
    manifest.require_runtime(runtime, tmp_path)
    others: set[Runtime] = {"cpu", "engine", "pytorch"}
    for other in others - {runtime}:
        with pytest.raises(ManifestError, match=rf"Serve it with EXECUTOR={executor}\."):
            manifest.require_runtime(other, tmp_path)
