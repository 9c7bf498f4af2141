"""Reading Hugging Face directories: settings in old and new spelling, files, and refusals with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_engine.artifact.model_directory import hash_model_files
from build_engine.artifact.result import BuildResult
from build_engine.cpu.hugging_face.checkpoint import HuggingFaceCheckpoint
from build_engine.cpu.hugging_face.parameters import config_values, read_parameters
from build_engine.cpu.hugging_face.rope_settings import context_length
from build_engine.cpu.weights import convert_weights
from build_engine.errors import EngineRefusedError
from build_engine.progress import SilentProgress
from build_engine.verification.verify import verify_engine
from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.cpu.engine.weights import ModelShape, Weights
from tests.support.hugging_face_models import (
    CONTEXT_LENGTH,
    REFERENCE_MODELS,
    VOCAB_SIZE,
    TinyDirectory,
    write_safetensors,
)

REPOSITORY = Path(__file__).parents[5]
Build = Callable[..., BuildResult]
GEMMA3 = REFERENCE_MODELS["gemma3"]


def open_model(directory: Path, model: TinyDirectory) -> HuggingFaceCheckpoint:
    return HuggingFaceCheckpoint(model.write(directory / "tiny-llama-0.5"))


def shape_of(directory: Path, class_name: str, **config: Any) -> ModelShape:
    return open_model(directory, TinyDirectory(class_name, config)).parameters.shape


def weights_of(directory: Path, model: TinyDirectory) -> Weights:
    return convert_weights(open_model(directory, model), lambda _: None)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_directory_builds_an_engine_that_passes_verification(tmp_path: Path, build: Build) -> None:
    directory = GEMMA3.write(tmp_path / "Tiny-Gemma-3.1")
    result = build(directory, tmp_path / "engine")
    manifest = EngineManifest.load(result.engine_dir)
    assert manifest.model_name == "tiny-gemma-3.1"
    assert manifest.source.name == "Tiny-Gemma-3.1"
    assert (manifest.source.architecture, manifest.source.quantization) == ("Gemma3ForCausalLM", "BF16")
    assert manifest.source.sha256 == hash_model_files(directory)
    assert (manifest.limits.context_length, manifest.limits.vocab_size) == (CONTEXT_LENGTH, VOCAB_SIZE)
    assert (manifest.tokens.bos, manifest.tokens.eos, manifest.tokens.add_bos) == (1, [2], False)
    assert (result.engine_dir / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()
    assert not any(check.failed for check in verify_engine(result.engine_dir, SilentProgress()))
    assert build(directory, tmp_path / "engine").reused


def test_an_int8_engine_of_a_directory_records_its_quantization_error(tmp_path: Path, build: Build) -> None:
    result = build(REFERENCE_MODELS["mistral-window"].write(tmp_path / "mistral"), tmp_path / "engine", "int8")
    assert result.manifest.drift
    assert result.manifest.drift.top_token_agreement > 0.85


def test_changed_weights_give_another_source(tmp_path: Path, build: Build) -> None:
    directory = TinyDirectory().write(tmp_path / "tiny")
    build(directory, tmp_path / "engine")
    TinyDirectory(seed=12).write(directory)
    with pytest.raises(EngineRefusedError, match="engine of another model"):
        build(directory, tmp_path / "engine")


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 4])
def test_weights_have_the_values_of_their_type_in_one_file_or_several(
    tmp_path: Path, type_name: str, shards: int
) -> None:
    model = TinyDirectory(type_name=type_name, shards=shards)
    checkpoint = open_model(tmp_path, model)
    original = model.tensors()
    assert checkpoint.quantization == type_name
    assert checkpoint.fp16_bytes == 2 * sum(tensor.size for tensor in original.values())
    np.testing.assert_array_equal(
        checkpoint.read("layers.1.key.weight"), original["model.layers.1.self_attn.k_proj.weight"]
    )
    np.testing.assert_array_equal(checkpoint.read("vocabulary.weight"), original["lm_head.weight"])


def test_a_tied_model_ignores_its_copy_of_the_embedding(tmp_path: Path) -> None:
    directory = TinyDirectory().write(tmp_path / "tied")
    change_json(directory / "config.json", tie_word_embeddings=True)
    assert "vocabulary.weight" not in HuggingFaceCheckpoint(directory).parts


def test_recomputed_rope_tensors_of_old_exports_are_ignored(tmp_path: Path) -> None:
    directory = TinyDirectory().write(tmp_path / "old")
    tensors = TinyDirectory().tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    write_safetensors(directory / "model.safetensors", tensors)
    assert HuggingFaceCheckpoint(directory).parts == open_model(tmp_path, TinyDirectory()).parts


def test_rope_of_both_versions_of_transformers_gives_the_same_engine(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    old = weights_of(tmp_path / "4", TinyDirectory(config={"rope_theta": 5000.0, "rope_scaling": scaling}))
    new = weights_of(tmp_path / "5", TinyDirectory(config={"rope_parameters": {**scaling, "rope_theta": 5000.0}}))
    older = {"type": "yarn", **{key: value for key, value in scaling.items() if key != "rope_type"}}
    oldest = weights_of(tmp_path / "3", TinyDirectory(config={"rope_theta": 5000.0, "rope_scaling": older}))
    assert old.shape == new.shape == oldest.shape
    for weights in (new, oldest):
        np.testing.assert_array_equal(weights.tensors["rope.frequencies"], old.tensors["rope.frequencies"])


def test_the_original_length_may_stand_beside_the_rope_settings(tmp_path: Path) -> None:
    """transformers prefers this place, which Phi-3 uses."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    inside = {**scaling, "original_max_position_embeddings": 32}
    beside = {"rope_scaling": scaling, "original_max_position_embeddings": 32}
    models = [TinyDirectory(config={"rope_scaling": inside}), TinyDirectory(config=beside)]
    first, second = (weights_of(tmp_path / str(number), model) for number, model in enumerate(models))
    np.testing.assert_array_equal(first.tensors["rope.frequencies"], second.tensors["rope.frequencies"])


def test_unscaled_rope_is_computed_by_the_engine(tmp_path: Path) -> None:
    weights = weights_of(tmp_path, TinyDirectory(config={"rope_scaling": {"rope_type": "default"}}))
    assert "rope.frequencies" not in weights.tensors
    assert weights.shape.rope_base == 10000.0


@pytest.mark.parametrize(
    ("class_name", "config", "windows"),
    [
        ("LlamaForCausalLM", {"sliding_window": 16}, ()),
        ("MistralForCausalLM", {"sliding_window": 16}, (16, 16)),
        ("MistralForCausalLM", {"sliding_window": None}, ()),
        ("MistralForCausalLM", {}, (4096, 4096)),
        ("Qwen2ForCausalLM", {"sliding_window": 16, "use_sliding_window": False}, ()),
        ("Qwen2ForCausalLM", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, (0, 16)),
        ("Qwen3ForCausalLM", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 2}, ()),
        (
            "Qwen3ForCausalLM",
            {
                "sliding_window": 16,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (16, 0),
        ),
        ("Gemma3ForCausalLM", {"sliding_window": 16, "sliding_window_pattern": 2}, (16, 0)),
        ("Gemma3ForCausalLM", {"sliding_window": 16}, (16, 16)),
        ("Gemma3ForCausalLM", {"sliding_window": None}, (4096, 4096)),
    ],
)
def test_windows_follow_the_rules_of_each_class(
    tmp_path: Path, class_name: str, config: dict[str, Any], windows: tuple[int, ...]
) -> None:
    assert shape_of(tmp_path, class_name, **config).windows == windows


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (None, CONTEXT_LENGTH),
        ({"rope_type": "linear", "factor": 4.0}, CONTEXT_LENGTH),
        ({"rope_type": "yarn", "factor": 4.0}, 4 * CONTEXT_LENGTH),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, CONTEXT_LENGTH),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 4 * CONTEXT_LENGTH),
    ],
    ids=["unscaled", "linear", "yarn-of-trained", "yarn-included", "yarn-before"],
)
def test_the_context_length_counts_yarn_once(tmp_path: Path, rope: dict[str, Any] | None, expected: int) -> None:
    assert open_model(tmp_path, TinyDirectory(config={"rope_scaling": rope})).context_length == expected


@pytest.mark.parametrize(
    ("class_name", "config", "message"),
    [
        ("PhiForCausalLM", {}, "'PhiForCausalLM' is not supported on CPUs.*LlamaForCausalLM.*Gemma3ForCausalLM"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "awq"}}, "quantized with awq"),
        ("LlamaForCausalLM", {"hidden_act": "relu"}, "hidden_act = 'relu', which the CPU engine does not support"),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "dynamic"}}, "rope type 'dynamic'.*linear, llama3, yarn"),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling\.factor = None"),
        ("LlamaForCausalLM", {"rope_scaling": 4}, "rope_scaling = 4; it must be an object"),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("LlamaForCausalLM", {"num_hidden_layers": -1}, "num_hidden_layers = -1; it must be an integer above 0"),
        ("LlamaForCausalLM", {"rope_theta": "big"}, "rope_theta = 'big'; it must be a number above 0"),
        ("LlamaForCausalLM", {"num_key_value_heads": 3}, "4 heads for 3 key and value heads"),
        ("Gemma3ForCausalLM", {"final_logit_softcapping": 30.0}, r"final_logit_softcapping = 30\.0"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("Gemma3ForCausalLM", {"layer_types": ["full_attention"]}, "must be 2 times full_attention or sliding"),
        (
            "LlamaForCausalLM",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                }
            },
            "not above low_freq_factor",
        ),
        (
            "Gemma3ForCausalLM",
            {
                "sliding_window": 16,
                "rope_parameters": {
                    "full_attention": {"rope_type": "default"},
                    "sliding_attention": {"rope_type": "yarn", "factor": 2.0},
                },
            },
            "yarn rope in layers with a sliding window",
        ),
    ],
)
def test_a_setting_that_the_graph_would_ignore_is_refused(
    tmp_path: Path, class_name: str, config: dict[str, Any], message: str
) -> None:
    directory = TinyDirectory().write(tmp_path / "tiny-llama-0.5")
    change_json(directory / "config.json", architectures=[class_name], **config)
    with pytest.raises(EngineRefusedError, match=rf"^tiny-llama-0\.5: .*{message}"):
        HuggingFaceCheckpoint(directory)


def test_a_tensor_of_another_shape_than_configured_is_refused(tmp_path: Path) -> None:
    directory = TinyDirectory().write(tmp_path / "tiny")
    change_json(directory / "config.json", head_dim=8)
    checkpoint = HuggingFaceCheckpoint(directory)
    with pytest.raises(
        EngineRefusedError, match=r"layers\.0\.query\.weight has the shape \(64, 64\).*require \(32, 64\)"
    ):
        convert_weights(checkpoint, lambda _: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.0.mlp.gate_up_proj.weight": np.ones((2, 2), np.float32)}, "support tensor .*gate_up_proj"),
        ({"model.layers.7.input_layernorm.weight": np.ones(64, np.float32)}, "support tensor model.layers.7"),
        ({"model.layers.1.mlp.up_proj.weight": None}, r"no tensor for layers\.1\.up\.weight"),
        ({"lm_head.weight": None}, r"no tensor for vocabulary\.weight"),
    ],
    ids=["unknown", "layer", "missing", "untied"],
)
def test_tensors_that_do_not_fit_the_architecture_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    directory = TinyDirectory().write(tmp_path / "tiny")
    tensors = {name: value for name, value in (TinyDirectory().tensors() | change).items() if value is not None}
    write_safetensors(directory / "model.safetensors", tensors)
    with pytest.raises(EngineRefusedError, match=message):
        HuggingFaceCheckpoint(directory)


def test_qwen2_without_its_biases_is_refused(tmp_path: Path) -> None:
    directory = TinyDirectory().write(tmp_path / "tiny")
    change_json(directory / "config.json", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(EngineRefusedError, match=r"no tensor for layers\.0\.key\.bias"):
        HuggingFaceCheckpoint(directory)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "is not valid JSON"),
        ("config.json", b"[]", "is not a JSON object"),
        ("config.json", b"{}", "architectures = None"),
        ("config.json", None, r"has no config\.json. Pass a Hugging Face model directory or a GGUF file"),
        ("model.safetensors", None, r"has neither model\.safetensors nor"),
        ("model.safetensors", b"\x05\0\0\0\0\0\0\0{", "truncated or damaged"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0[]", "truncated or damaged"),
        ("model.safetensors", b"\xff" * 8, "truncated or damaged"),
        ("model.safetensors", b"", r"is empty\. Download it again"),
    ],
)
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    directory = TinyDirectory().write(tmp_path / "tiny")
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content)
    with pytest.raises(EngineRefusedError, match=message):
        HuggingFaceCheckpoint(directory)


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    path = TinyDirectory().write(tmp_path / "tiny") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(EngineRefusedError, match=r"model\.safetensors is truncated or damaged"):
        HuggingFaceCheckpoint(path.parent)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "has the type F8_E4M3. Use weights in"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}, "truncated or damaged"),
        ({"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}, "truncated or damaged"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, "truncated or damaged"),
        ({"dtype": "F32", "shape": [1]}, "truncated or damaged"),
    ],
)
def test_an_invalid_entry_of_a_header_is_refused(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    directory = TinyDirectory().write(tmp_path / "tiny")
    header = json.dumps({"model.norm.weight": entry}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(EngineRefusedError, match=message):
        HuggingFaceCheckpoint(directory)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = TinyDirectory(shards=3).write(tmp_path / "tiny")
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(EngineRefusedError, match=r"model-00002-of-00003\.safetensors is missing \(1 of 3 shards\)"):
        HuggingFaceCheckpoint(directory)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "", 5])
def test_an_index_that_leads_out_of_the_directory_is_refused(tmp_path: Path, name: Any) -> None:
    directory = TinyDirectory(shards=2).write(tmp_path / "tiny")
    change_json(directory / "model.safetensors.index.json", weight_map={"model.norm.weight": name})
    with pytest.raises(EngineRefusedError, match="does not list files of its own directory"):
        HuggingFaceCheckpoint(directory)


def test_added_tokens_without_logits_are_removed_from_the_tokenizer(tmp_path: Path) -> None:
    """Gemma 3 1B has such a token, which stands for an image."""
    directory = TinyDirectory().write(tmp_path / "tiny")
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    image = {**added[0], "id": VOCAB_SIZE, "content": "<image>"}
    change_json(directory / "tokenizer.json", added_tokens=[*added, image], truncation=None)
    checkpoint = HuggingFaceCheckpoint(directory)
    assert checkpoint.token_count <= VOCAB_SIZE
    assert json.loads(checkpoint.tokenizer_json())["added_tokens"] == added


def test_more_tokens_than_rows_are_refused(tmp_path: Path, build: Build) -> None:
    model = TinyDirectory(config={"vocab_size": 200})
    with pytest.raises(EngineRefusedError, match="but the output matrix only 200 rows"):
        build(model.write(tmp_path / "tiny"), tmp_path / "engine")


@pytest.mark.parametrize("content", [None, "{}", "{"], ids=["missing", "empty", "truncated"])
def test_an_invalid_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    directory = TinyDirectory().write(tmp_path / "tiny")
    if content is None:
        (directory / "tokenizer.json").unlink()
    else:
        (directory / "tokenizer.json").write_text(content)
    with pytest.raises(EngineRefusedError, match=r"tokenizer\.json"):
        HuggingFaceCheckpoint(directory).tokenizer_json()


def test_end_tokens_of_the_generation_config_come_first(tmp_path: Path) -> None:
    directory = TinyDirectory().write(tmp_path / "tiny")
    (directory / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert HuggingFaceCheckpoint(directory).token_ids.eos == [2, 5]


def test_a_special_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    checkpoint = open_model(tmp_path, TinyDirectory(config={"eos_token_id": VOCAB_SIZE}))
    with pytest.raises(EngineRefusedError, match=f"special token id {VOCAB_SIZE} is outside"):
        _ = checkpoint.token_ids


@pytest.mark.parametrize(
    ("name", "head_size", "rope_base", "is_scaled", "context"),
    [
        ("llama-3.1-8b", 128, 500000.0, True, 131072),
        ("mistral-7b", 128, 1000000.0, False, 32768),
        ("qwen3-8b", 128, 1000000.0, False, 40960),
        ("smollm2-135m", 64, 100000.0, False, 8192),
    ],
)
def test_published_configurations_are_read(
    name: str, head_size: int, rope_base: float, is_scaled: bool, context: int
) -> None:
    values = json.loads((REPOSITORY / "tests" / "data" / "model_configs" / name / "config.json").read_text())
    architecture, config = config_values(values)
    parameters = read_parameters(architecture, config)
    assert parameters.shape.head_size == head_size
    assert parameters.shape.windows == ()
    assert (parameters.rope.base, parameters.rope.is_scaled) == (rope_base, is_scaled)
    assert context_length(config) == context
