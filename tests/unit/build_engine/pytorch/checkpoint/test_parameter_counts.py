"""Parameter counts of small models against those of transformers 5.24.0.

Each count is the sum of the elements of the class's parameters, plus those of the routers' correction biases, which
are buffers there. The models were created from the same values as here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from build_engine.pytorch.checkpoint.model_directory import read_model_directory
from build_engine.pytorch.planning.parameters import count_parameters
from tests.support.pytorch_models import tiny_config, write_model

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
DELTA = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
}
DEEPSEEK = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
NEMOTRON_H = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 32,
    "ssm_state_size": 16,
    "n_groups": 2,
    "conv_kernel": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 128,
}
# transformers 5 writes these keys; others read or write num_experts and hybrid_override_pattern.
NEW_KEYS = {
    "num_hidden_layers": None,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "linear_attention"],
}
WITH_SHARED = {**EXPERTS, "shared_expert_intermediate_size": 64}
GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}
COUNTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("LlamaForCausalLM", {}, 3_148_032),
    "biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}, 3_157_248),
    "tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}, 3_016_960),
    "mistral": ("MistralForCausalLM", {"sliding_window": 64}, 3_148_032),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}, 7_870_720),
    "qwen2": ("Qwen2ForCausalLM", {}, 3_151_104),
    "qwen2-moe": ("Qwen2MoeForCausalLM", {**EXPERTS, "shared_expert_intermediate_size": 192}, 3_750_144),
    "qwen3": ("Qwen3ForCausalLM", {}, 3_148_544),
    "qwen3-moe": ("Qwen3MoeForCausalLM", {**EXPERTS, "mlp_only_layers": [1]}, 3_154_688),
    "qwen3-moe-new-key": (
        "Qwen3MoeForCausalLM",
        {**EXPERTS, "num_experts": None, "num_local_experts": 8, "mlp_only_layers": [1]},
        3_154_688,
    ),
    "qwen3-next": ("Qwen3NextForCausalLM", {**WITH_SHARED, **DELTA}, 3_307_024),
    "qwen3.5": ("Qwen3_5ForCausalLM", DELTA, 3_101_200),
    "qwen3.5-moe": ("Qwen3_5MoeForCausalLM", {**WITH_SHARED, **DELTA}, 3_307_024),
    "deepseek": ("DeepseekV3ForCausalLM", DEEPSEEK, 2_712_472),
    "deepseek-plain-query": (
        "DeepseekV3ForCausalLM",
        {**DEEPSEEK, "q_lora_rank": None, "n_shared_experts": 2, "first_k_dense_replace": 2},
        2_906_640,
    ),
    "gpt-oss": ("GptOssForCausalLM", GPT_OSS, 7_895_344),
    "gemma3": (
        "Gemma3ForCausalLM",
        {"num_hidden_layers": 7, "sliding_window": 64, "tie_word_embeddings": True},
        5_185_664,
    ),
    "nemotron": ("NemotronForCausalLM", {}, 2_626_048),
    "nemotron-h": ("NemotronHForCausalLM", {**NEMOTRON_H, "hybrid_override_pattern": "ME*M"}, 1_222_580),
    "nemotron-h-new-keys": ("NemotronHForCausalLM", {**NEMOTRON_H, **NEW_KEYS}, 1_222_580),
    "nemotron-h-latent": (
        "NemotronHForCausalLM",
        {**NEMOTRON_H, "num_hidden_layers": 5, "hybrid_override_pattern": "ME*-E", "moe_latent_size": 32},
        1_269_088,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_counted_as_transformers_has_them(tmp_path: Path, name: str) -> None:
    architecture, values, expected = COUNTS[name]
    model = read_model_directory(write_model(tmp_path, tiny_config(architecture, **values)))
    assert model.decoder is not None
    assert model.knows_layers
    assert count_parameters(model.decoder) == expected
