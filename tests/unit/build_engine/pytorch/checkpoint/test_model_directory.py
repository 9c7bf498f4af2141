"""Reading model directories: quantization, sizes from the headers, files that belong to them, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build_engine.errors import EngineRefusedError
from build_engine.pytorch.checkpoint.model_directory import read_architecture, read_model_directory
from build_engine.pytorch.checkpoint.quantization import Quantization
from build_engine.pytorch.planning.formats import stored_format
from tests.support.pytorch_models import MODELS, dense_tensors, tiny_config, write_headers, write_model

LLAMA = tiny_config("LlamaForCausalLM")


def write_modelopt(path: Path, **values: Any) -> Path:
    write_model(path, LLAMA)
    (path / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": values}))
    return path


def quantization_of(path: Path) -> Quantization | None:
    return read_model_directory(path).quantization


def test_a_plain_model_has_no_quantization(tmp_path: Path) -> None:
    model = read_model_directory(write_model(tmp_path / "Llama 3.1 (8B)", LLAMA))
    assert (model.name, model.architecture, model.dtype) == ("llama-3.1-8b", "LlamaForCausalLM", "bfloat16")
    assert model.quantization is None
    assert model.weights is None
    assert not model.has_tokenizer


@pytest.mark.parametrize(
    ("values", "algorithm", "kv", "precision"),
    [
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}, "FP8", "fp8", "fp8"),
        ({"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16}, "NVFP4", "fp8", "nvfp4"),
        ({"quant_algo": "NVFP4", "kv_cache_quant_algo": "NVFP4"}, "NVFP4", "nvfp4", "nvfp4"),
        ({"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None}, "W4A16_AWQ", None, "int4-awq"),
        ({"quant_algo": "W4A8_AWQ"}, "W4A8_AWQ", None, "w4a8-awq"),
        ({"quant_algo": "fp8_pb_wo"}, "FP8_BLOCK_SCALES", None, "fp8-block"),
        ({"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8"}, "MIXED_PRECISION", "fp8", "mixed"),
        ({"quant_algo": None, "kv_cache_quant_algo": "FP8"}, "NONE", "fp8", "bf16"),
    ],
)
def test_modelopts_file_is_read(
    tmp_path: Path, values: dict[str, Any], algorithm: str, kv: str | None, precision: str
) -> None:
    model = read_model_directory(write_modelopt(tmp_path, **values))
    assert model.quantization is not None
    assert (model.quantization.algorithm, model.quantization.kv_cache_precision) == (algorithm, kv)
    assert model.quantization.source == "hf_quant_config.json"
    weights = stored_format(model)
    assert weights is not None
    assert weights.name == precision


def test_modelopts_file_without_any_quantization_means_none(tmp_path: Path) -> None:
    assert quantization_of(write_modelopt(tmp_path, quant_algo=None, kv_cache_quant_algo=None)) is None


def test_modelopts_file_wins_over_config_json(tmp_path: Path) -> None:
    """As in upstream's ModelConfig.from_pretrained."""
    path = write_modelopt(tmp_path, quant_algo="NVFP4")
    (path / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": {"quant_method": "mxfp4"}}))
    found = quantization_of(path)
    assert found is not None
    assert found.algorithm == "NVFP4"


@pytest.mark.parametrize(
    ("values", "algorithm", "kv"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8_BLOCK_SCALES", None),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "MXFP4", None),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, "FP8", None),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": {"type": "float", "num_bits": 8}},
            "NVFP4",
            "fp8",
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": "NVFP4"}, "NVFP4", "nvfp4"),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, "FP8", None),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq of 4 bits", None),
        ({"quant_method": "mxfp8", "weight_block_size": [1, 32]}, "MXFP8", None),
        ({"quant_method": "nvfp4"}, "NVFP4", None),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes", None),
        ({"quant_method": "fp8"}, "fp8", None),
        ({}, None, None),
    ],
)
def test_the_entry_of_config_json_is_read(
    tmp_path: Path, values: dict[str, Any], algorithm: str | None, kv: str | None
) -> None:
    found = quantization_of(write_model(tmp_path, LLAMA | {"quantization_config": values}))
    assert (found.algorithm if found else None) == algorithm
    assert (found.kv_cache_precision if found else None) == kv


FP8_CHANNELS = {
    "weights": {"type": "float", "num_bits": 8, "strategy": "channel"},
    "input_activations": {"strategy": "token"},
}
FP8_BLOCKS = {
    "weights": {"type": "float", "num_bits": 8, "strategy": "block"},
    "input_activations": {"strategy": "group", "group_size": 128},
}
NVFP4_GROUPS = {
    "weights": {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16},
    "input_activations": {"strategy": "tensor_group"},
}


@pytest.mark.parametrize(
    ("groups", "algorithm", "precision"),
    [
        ({"group_0": FP8_CHANNELS}, "FP8_PER_CHANNEL_PER_TOKEN", "fp8-rowwise"),
        ({"group_0": FP8_BLOCKS}, "FP8_BLOCK_SCALES", "fp8-block"),
        ({"group_0": NVFP4_GROUPS}, "NVFP4", "nvfp4"),
        ({"group_0": FP8_CHANNELS, "group_1": NVFP4_GROUPS}, "MIXED_PRECISION", "mixed"),
        ({"group_0": NVFP4_GROUPS, "group_1": NVFP4_GROUPS}, "NVFP4", "nvfp4"),
        ({"group_0": {"weights": None}}, "compressed-tensors (None-bit None, by None)", None),
    ],
)
def test_groups_of_compressed_tensors_are_read_by_upstreams_rules(
    tmp_path: Path, groups: dict[str, Any], algorithm: str, precision: str | None
) -> None:
    values = {
        "quant_method": "compressed-tensors",
        "config_groups": groups,
        "kv_cache_scheme": {"type": "float", "num_bits": 8},
        "ignore": ["lm_head"],
    }
    model = read_model_directory(write_model(tmp_path, LLAMA | {"quantization_config": values}))
    found, weights = model.quantization, stored_format(model)
    assert found is not None
    assert (found.algorithm, found.kv_cache_precision, found.excluded) == (algorithm, "fp8", ("lm_head",))
    assert (weights.name if weights else None) == precision


@pytest.mark.parametrize(
    ("content", "since"),
    [
        ({"quantization": {"quant_algo": "FP8"}}, (1, 2)),
        ({"producer": {"name": "modelopt"}, "quant_method": "modelopt", "quant_algo": "FP8"}, (1, 3)),
    ],
    ids=["version 0", "version 1"],
)
def test_both_forms_of_modelopts_file_are_read_for_the_releases_that_know_them(
    tmp_path: Path, content: dict[str, Any], since: tuple[int, int]
) -> None:
    write_model(tmp_path, LLAMA)
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(content))
    found = quantization_of(tmp_path)
    assert found is not None
    assert (found.algorithm, found.since) == ("FP8", since)


def test_the_entry_may_be_in_the_text_part(tmp_path: Path) -> None:
    entry = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    config = {"architectures": LLAMA["architectures"], "text_config": LLAMA | entry}
    found = quantization_of(write_model(tmp_path, config))
    assert found is not None
    assert found.algorithm == "FP8_BLOCK_SCALES"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantization_config": "fp8"}, "quantization_config = 'fp8'; it must be an object"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [1, 128]}},
            r"weight_block_size = \[1, 128\]; TensorRT-LLM supports \[128, 128\] only",
        ),
        (
            {"quantization_config": {"quant_method": "mxfp8", "weight_block_size": [1, 16]}},
            r"weight_block_size = \[1, 16\]; TensorRT-LLM supports \[1, 32\] only",
        ),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "config_groups = None; it must be an object"),
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"type": 3}}},
            "kv_cache_scheme = {'type': 3}",
        ),
        ({"architectures": "LlamaForCausalLM"}, "architectures = 'LlamaForCausalLM'; it must be a list"),
        ({"torch_dtype": "int8"}, "torch_dtype = 'int8'"),
        ({"vocab_size": None}, "vocab_size = None"),
    ],
)
def test_an_invalid_value_of_config_json_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineRefusedError, match=message):
        read_model_directory(write_model(tmp_path, LLAMA | values))


@pytest.mark.parametrize("content", ['{"quantization": []}', "{}", '{"quantization": {"quant_algo": 8}}', "not JSON"])
def test_an_invalid_modelopt_file_is_named(tmp_path: Path, content: str) -> None:
    write_model(tmp_path, LLAMA)
    (tmp_path / "hf_quant_config.json").write_text(content)
    with pytest.raises(EngineRefusedError, match=r"hf_quant_config\.json"):
        read_model_directory(tmp_path)


def test_a_missing_directory_or_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineRefusedError, match="No model directory"):
        read_model_directory(tmp_path / "nowhere")
    with pytest.raises(EngineRefusedError, match=r"has no config\.json"):
        read_architecture(tmp_path)


@pytest.mark.parametrize("shards", [1, 3])
def test_sizes_come_from_the_headers_of_all_shards(tmp_path: Path, shards: int) -> None:
    tensors = dense_tensors(LLAMA)
    model = read_model_directory(write_model(tmp_path, LLAMA, tensors, shards))
    assert model.weights is not None
    expected = sum(2 * size for size in (_elements(shape) for _, shape in tensors.values()))
    assert model.weights.size_bytes == expected
    assert (model.weights.main_type, len(model.weights.files)) == ("BF16", shards)


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def test_an_index_that_names_another_file_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA, dense_tensors(LLAMA), 2)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = next(
        file for file in content["weight_map"].values() if file != content["weight_map"]["model.norm.weight"]
    )
    index.write_text(json.dumps(content))
    with pytest.raises(EngineRefusedError, match=r"lists tensor model\.norm\.weight in model-0000\d-of-00002"):
        read_model_directory(tmp_path)


def test_a_tensor_that_the_index_lacks_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA, dense_tensors(LLAMA), 2)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["lm_head.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(EngineRefusedError, match=r"has tensor lm_head\.weight, which .* does not list"):
        read_model_directory(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA, dense_tensors(LLAMA), 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(EngineRefusedError, match=r"model-00002-of-00003\.safetensors is missing \(1 of 3 shards\)"):
        read_model_directory(tmp_path)


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path, LLAMA, dense_tensors(LLAMA)) / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(EngineRefusedError, match=r"model\.safetensors is truncated or damaged"):
        read_model_directory(tmp_path)


def test_a_further_weights_file_is_refused_because_upstream_would_load_it(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA, dense_tensors(LLAMA))
    write_headers(tmp_path / "adapter.safetensors", {"lora_A": ("BF16", (2, 2))})
    with pytest.raises(EngineRefusedError, match=r"has adapter\.safetensors \(1 such files\)"):
        read_model_directory(tmp_path)


def test_the_consolidated_file_of_mistral_is_ignored_as_upstream_does(tmp_path: Path) -> None:
    tensors = dense_tensors(LLAMA)
    write_model(tmp_path, LLAMA, tensors, 2)
    write_headers(tmp_path / "consolidated.safetensors", tensors)
    model = read_model_directory(tmp_path)
    assert model.weights is not None
    assert len(model.weights.files) == 2


def test_weights_without_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineRefusedError, match="have no tensors"):
        read_model_directory(write_model(tmp_path, LLAMA, {}))


def test_only_companions_that_exist_are_listed(tmp_path: Path) -> None:
    write_modelopt(tmp_path, quant_algo="FP8")
    for name in ("generation_config.json", "tokenizer.json", "README.md"):
        (tmp_path / name).write_text("{}")
    model = read_model_directory(tmp_path)
    assert model.has_tokenizer
    assert [path.name for path in model.companion_files] == [
        "config.json",
        "generation_config.json",
        "hf_quant_config.json",
    ]


def test_the_digest_covers_the_quantization_and_ignores_the_copys_origin(tmp_path: Path) -> None:
    plain = read_model_directory(write_model(tmp_path / "a", LLAMA)).sha256
    moved = read_model_directory(write_model(tmp_path / "b", LLAMA | {"_name_or_path": "elsewhere"})).sha256
    quantized = read_model_directory(write_modelopt(tmp_path / "c", quant_algo="FP8")).sha256
    assert plain == moved
    assert plain != quantized


def test_the_published_checkpoints_have_their_formats() -> None:
    formats = {name: stored_format(model) for name, model in MODELS.items()}
    names = {name: weights.name if weights else None for name, weights in formats.items()}
    assert (names["deepseek-v3"], names["gpt-oss-20b"], names["llama-3.1-8b"]) == ("fp8-block", "mxfp4", "bf16")
