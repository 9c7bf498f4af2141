"""The layers that each family's config.json describes, and parameter counts against published ones."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from build_engine.errors import EngineRefusedError
from build_engine.pytorch.checkpoint.decoder import Attention, DeltaNet, Experts, LatentAttention, Mamba2, Mlp
from build_engine.pytorch.checkpoint.model_directory import ModelDirectory, read_model_directory
from build_engine.pytorch.planning.parameters import count_parameters
from tests.support.published_figures import PYTORCH_PARAMETERS, Figure
from tests.support.pytorch_models import CONFIGS, MODELS, tiny_config, write_model


def kinds(model: ModelDirectory) -> Counter[str]:
    """Number of layers by what they compute."""
    assert model.decoder is not None
    found = Counter[str]()
    for layer in model.decoder.layers:
        mixer = type(layer.mixer).__name__ if layer.mixer else ""
        if isinstance(layer.mixer, Attention) and layer.mixer.window:
            mixer += f"/{layer.mixer.window}"
        found[f"{mixer}+{type(layer.feed_forward).__name__ if layer.feed_forward else ''}"] += 1
    return found


@pytest.mark.parametrize("figure", PYTORCH_PARAMETERS, ids=lambda figure: figure.model)
def test_parameter_counts_are_the_published_ones(figure: Figure) -> None:
    decoder = MODELS[figure.model].decoder
    assert decoder is not None
    assert count_parameters(decoder) == figure.published


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("llama-3.1-8b", {"Attention+Mlp": 32}),
        ("mixtral-8x7b", {"Attention+Experts": 32}),
        ("qwen3-30b-a3b", {"Attention+Experts": 48}),
        ("qwen3.5-27b", {"DeltaNet+Mlp": 48, "Attention+Mlp": 16}),
        ("deepseek-v3", {"LatentAttention+Mlp": 3, "LatentAttention+Experts": 58}),
        ("gpt-oss-120b", {"Attention/128+Experts": 18, "Attention+Experts": 18}),
        ("gemma-3-27b", {"Attention/1024+Mlp": 52, "Attention+Mlp": 10}),
        ("nemotron-3-nano-30b", {"Mamba2+": 23, "+Experts": 23, "Attention+": 6}),
    ],
)
def test_each_family_has_its_layers(model: str, expected: dict[str, int]) -> None:
    assert kinds(MODELS[model]) == expected


@pytest.mark.parametrize(
    ("architecture", "values", "windows"),
    [
        ("MistralForCausalLM", {"sliding_window": 128}, [128] * 4),
        ("MistralForCausalLM", {"sliding_window": None}, [None] * 4),
        ("LlamaForCausalLM", {"sliding_window": 128}, [None] * 4),
        ("Qwen3ForCausalLM", {"sliding_window": 128, "use_sliding_window": False}, [None] * 4),
        (
            "Qwen3ForCausalLM",
            {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 3},
            [None, None, None, 128],
        ),
        (
            "Qwen3ForCausalLM",
            {
                "sliding_window": 128,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            [128, None, 128, None],
        ),
        ("Gemma3ForCausalLM", {"sliding_window": 64, "sliding_window_pattern": 2}, [64, None, 64, None]),
        ("GptOssForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}, [32, None] * 2),
    ],
)
def test_windows_follow_the_rules_of_each_class(
    tmp_path: Path, architecture: str, values: dict[str, Any], windows: list[int | None]
) -> None:
    model = read_model_directory(write_model(tmp_path, tiny_config(architecture, **values)))
    assert model.decoder is not None
    assert [mixer.window for mixer in model.decoder.mixers if isinstance(mixer, Attention)] == windows


def test_the_text_part_of_a_model_with_vision_is_read() -> None:
    gemma = MODELS["gemma-3-27b"]
    assert gemma.decoder is not None
    assert (gemma.vocab_size, gemma.max_seq_len, gemma.decoder.tied_embeddings) == (262_208, 131_072, True)
    assert MODELS["qwen3.5-27b"].dtype == "bfloat16"


def test_shapes_of_special_layers_are_read() -> None:
    deepseek, qwen, nemotron = (MODELS[name].decoder for name in ("deepseek-v3", "qwen3.5-27b", "nemotron-3-nano-30b"))
    assert deepseek is not None
    assert qwen is not None
    assert nemotron is not None
    assert deepseek.mixers[0] == LatentAttention(128, 1536, 512, 128, 64, 128)
    assert DeltaNet(16, 48, 128, 128, 4) in qwen.mixers
    assert Mamba2(64, 64, 8, 128, 4) in nemotron.mixers
    assert Experts(128, 6, 1856, 3712, has_gate=False, has_correction_bias=True) in nemotron.feed_forwards


@pytest.mark.parametrize(
    ("values", "feed_forward"),
    [
        ({"mlp_only_layers": [0, 2]}, [Mlp, Experts, Mlp, Experts]),
        ({"decoder_sparse_step": 2}, [Mlp, Experts, Mlp, Experts]),
    ],
    ids=["listed", "step"],
)
def test_qwen_may_have_dense_layers_between_experts(
    tmp_path: Path, values: dict[str, Any], feed_forward: list[type]
) -> None:
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    model = read_model_directory(write_model(tmp_path, tiny_config("Qwen3MoeForCausalLM", **experts, **values)))
    assert model.decoder is not None
    assert [type(layer.feed_forward) for layer in model.decoder.layers] == feed_forward


def test_nemotrons_newer_list_of_layers_means_the_same_as_the_pattern(tmp_path: Path) -> None:
    values = json.loads((CONFIGS["nemotron-3-nano-30b"] / "config.json").read_text())
    names = {"M": "mamba", "*": "attention", "E": "moe"}
    pattern = values.pop("hybrid_override_pattern")
    listed = read_model_directory(
        write_model(tmp_path, values | {"layers_block_type": [names[kind] for kind in pattern]})
    )
    assert listed.decoder == MODELS["nemotron-3-nano-30b"].decoder


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        ("LlamaForCausalLM", {"num_hidden_layers": 0}, "num_hidden_layers = 0; it must be an integer above 0"),
        ("LlamaForCausalLM", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ("Gemma3ForCausalLM", {"layer_types": ["full_attention"]}, "it must be 4 times sliding_attention or full"),
        ("NemotronHForCausalLM", {"hybrid_override_pattern": "MM"}, "it must be 4 characters of"),
        ("MixtralForCausalLM", {"num_local_experts": "8"}, "num_local_experts = '8'"),
    ],
)
def test_an_invalid_value_is_named(tmp_path: Path, architecture: str, values: dict[str, Any], message: str) -> None:
    path = write_model(tmp_path, tiny_config(architecture, **values))
    with pytest.raises(EngineRefusedError, match=message.replace("(", r"\(")):
        read_model_directory(path)


def test_an_architecture_without_a_reader_is_estimated_as_full_attention(tmp_path: Path) -> None:
    model = read_model_directory(write_model(tmp_path, tiny_config("Phi3ForCausalLM")))
    assert not model.knows_layers
    assert kinds(model) == {"Attention+": 4}


def test_a_model_without_the_common_keys_has_no_decoder(tmp_path: Path) -> None:
    config = {"architectures": ["WhisperForConditionalGeneration"], "vocab_size": 10, "max_position_embeddings": 448}
    model = read_model_directory(write_model(tmp_path, config))
    assert model.decoder is None
