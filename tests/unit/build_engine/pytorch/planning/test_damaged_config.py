"""A value of any type, anywhere in config.json: a plan, or a refusal, and never another error."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build_engine.errors import EngineRefusedError
from build_engine.pytorch.checkpoint.model_directory import read_model_directory
from tests.support.pytorch_models import CONFIGS, pytorch_plan, tiny_config, write_model

_FP8_BY_CHANNEL = {
    "weights": {"type": "float", "num_bits": 8, "strategy": "channel"},
    "input_activations": {"strategy": "token"},
}
_QUANTIZED: list[dict[str, Any]] = [
    {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": _FP8_BY_CHANNEL},
        "kv_cache_scheme": {"type": "float", "num_bits": 8},
        "ignore": ["lm_head"],
    },
    {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
    },
    {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": {"type": "float", "num_bits": 8}},
    {"quant_method": "mxfp8", "weight_block_size": [1, 32]},
    {"quant_method": "fp8", "weight_block_size": [128, 128]},
    {"quant_method": "gptq", "bits": 4, "group_size": 128},
]
_BASES = [json.loads((path / "config.json").read_text()) for path in CONFIGS.values()] + [
    tiny_config("LlamaForCausalLM", quantization_config=quantization) for quantization in _QUANTIZED
]
_OPTIONAL_KEYS = ("quantization_config", "text_config", "layer_types", "sliding_window", "moe_latent_size")
_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 40),
    st.just(10**12),
    st.floats(),
    st.sampled_from(["", "fp8", "full_attention"]),
    st.lists(st.integers(-1, 3) | st.sampled_from(["full_attention", "M"]), max_size=3),
    st.dictionaries(st.sampled_from(["type", "weights", "quant_algo"]), st.integers(0, 9) | st.just([]), max_size=2),
)


def _paths(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))


@st.composite
def damaged_configs(draw: st.DrawFn) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(draw(st.sampled_from(_BASES))))
    path = draw(st.sampled_from([*_paths(config), *((key,) for key in _OPTIONAL_KEYS)]))
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = draw(_VALUES)
    return config


@given(damaged_configs())
@settings(max_examples=500, deadline=None)
def test_a_damaged_config_gives_a_plan_or_a_refusal(config: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model_dir = write_model(Path(folder) / "model", config)
        with contextlib.suppress(EngineRefusedError):
            pytorch_plan(read_model_directory(model_dir), "b200", tp=2)


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        ("Qwen3MoeForCausalLM", {"decoder_sparse_step": "x"}, "decoder_sparse_step = 'x'"),
        ("DeepseekV3ForCausalLM", {"n_shared_experts": -1}, "n_shared_experts = -1; it must be an integer of at least"),
        ("LlamaForCausalLM", {"text_config": 3}, "text_config = 3; it must be an object"),
        (
            "LlamaForCausalLM",
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": 128}},
            "weight_block_size = 128",
        ),
    ],
)
def test_the_damaged_value_is_named(tmp_path: Path, architecture: str, values: dict[str, Any], message: str) -> None:
    experts = {"num_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    with pytest.raises(EngineRefusedError) as raised:
        read_model_directory(write_model(tmp_path, tiny_config(architecture, **experts, **values)))
    assert message in str(raised.value)
