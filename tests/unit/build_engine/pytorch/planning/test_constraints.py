"""Refusals of the PyTorch runtime: one sentence each, with the value, the limit and what to choose instead."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from build_engine.errors import EngineRefusedError
from build_engine.pytorch.architectures import ARCHITECTURES, NOT_FOR_COMPLETIONS, Support, parse_release, support
from build_engine.pytorch.checkpoint.model_directory import ModelDirectory, read_model_directory
from build_engine.pytorch.planning.planner import plan_model
from build_engine.targets.gpus import Gpu
from tests.support.pytorch_models import dense_tensors, pytorch_plan, pytorch_request, tiny_config, write_model


def refusal(model: str | ModelDirectory = "llama-3.1-8b", target: str = "h100", **options: Any) -> str:
    """The only refusal."""
    plan = pytorch_plan(model, target, **options)
    assert plan.engine_dir is None
    (only,) = plan.refusals
    return only


def model_of(
    path: Path, architecture: str = "LlamaForCausalLM", quant: str | None = None, **values: Any
) -> ModelDirectory:
    write_model(path, tiny_config(architecture, **values))
    if quant:
        (path / "hf_quant_config.json").write_text(quant)
    return read_model_directory(path, "tiny")


@pytest.mark.parametrize(
    ("model", "target", "options", "message"),
    [
        ("llama-3.1-8b", "h100", {"tensorrt_llm": "1.1.0"}, "TensorRT-LLM 1.1.0 is not supported; 1.2 to 1.4"),
        ("llama-3.1-8b", "h100", {"tensorrt_llm": "2.0"}, "TensorRT-LLM 2.0 is not supported"),
        ("llama-3.1-8b", "h100", {"tensorrt_llm": "newest"}, "TensorRT-LLM newest is not supported"),
        (
            "qwen3.5-27b",
            "h200",
            {"tensorrt_llm": "1.2.1"},
            "Architecture Qwen3_5ForConditionalGeneration is not in TensorRT-LLM 1.2.1. Choose --tensorrt-llm 1.3",
        ),
        (
            "gpt-oss-20b",
            "l40s",
            {},
            "mxfp4 weights run on SM 90, 100, 103, 120, 121; l40s is SM 89. Use a checkpoint of this model in bf16",
        ),
        (
            "deepseek-v3",
            "rtx-pro-6000",
            {"tp": 8, "pp": 2},
            "fp8-block weights run on SM 90, 100, 103; rtx-pro",
        ),
        (
            "llama-3.1-8b",
            "a100",
            {"precision": "fp8"},
            "fp8 weights run on SM 89, 90, 100, 103, 120, 121; a100",
        ),
        ("llama-3.1-8b", "h100", {"precision": "nvfp4"}, "nvfp4 weights run on SM 100, 103, 120, 121; h100 is SM 90"),
        (
            "llama-3.1-8b",
            "b200",
            {"precision": "int4-awq"},
            "int4-awq weights run on SM 80, 86, 89, 90; b200 is",
        ),
        (
            "llama-3.1-8b",
            "h100",
            {"kv": "int8"},
            "The PyTorch runtime has no int8 KV cache. Choose --kv",
        ),
        (
            "llama-3.1-8b",
            "h100",
            {"tp": 64},
            "32 attention heads are not divisible by tp 64. Choose --tp 1, 2, 4, 8, 16 or 32.",
        ),
        ("qwen3-30b-a3b", "h100", {"tp": 32, "ep": 5}, "ep 5 does not divide tp 32. Choose --ep 1, 2, 4, 8, 16 or 32"),
        ("llama-3.1-8b", "h100", {"tp": 2, "ep": 2}, "ep 2 shares out experts, and llama-3.1-8b has no experts"),
        ("llama-3.1-8b", "h100", {"pp": 33}, "pp 33 exceeds the 32 layers. Choose --pp 32 or less"),
        (
            "llama-3.1-8b",
            "h100",
            {"max_seq_len": 131_073},
            "max_seq_len 131073 exceeds the 131072 tokens of llama",
        ),
        ("llama-3.1-8b", "h100", {"max_seq_len": 1}, "max_seq_len 1 has no room for a prompt and a completion"),
        (
            "llama-3.1-8b",
            "h100",
            {"max_batch_size": 40, "max_num_tokens": 8},
            "max_num_tokens 8 is below max_batch_size 40",
        ),
        (
            "llama-3.1-8b",
            "h100",
            {"max_batch_size": 999},
            "999 requests of 8192 tokens need 999.0 GiB of KV cache on each GPU; h100 has 51.1 GiB left for it",
        ),
        ("llama-3.1-70b", "h100", {}, "need 133.8 GiB on each GPU; h100 has 74.5 GiB. Choose a higher --tp or --pp"),
        ("llama-3.1-8b", "h100", {"gpu_count": 2, "tp": 4}, "tp 4 x pp 1 needs 4 GPUs; this machine has 2"),
    ],
)
def test_each_violation_is_one_sentence_with_the_value_and_the_fix(
    model: str, target: str, options: dict[str, Any], message: str
) -> None:
    assert message in refusal(model, target, **options)


def test_an_old_gpu_is_refused() -> None:
    request = replace(pytorch_request(), gpu=Gpu("t4", "T4", 75, 80_000_000_000))
    (only,) = plan_model(request).refusals
    assert only.startswith("t4 is SM 75; TensorRT-LLM 1.x requires SM 80 or newer.")


def test_a_gpu_that_is_missing_from_the_table_has_the_formats_of_its_generation() -> None:
    """Such as the SM 87 of an Orin and the SM 110 of a Thor, which --target auto may find."""
    orin, thor = (Gpu(name, name, sm, 64_000_000_000) for name, sm in (("orin", 87), ("thor", 110)))
    assert plan_model(replace(pytorch_request(), gpu=orin)).accepted
    assert "fp8 weights run on" in plan_model(replace(pytorch_request(precision="fp8"), gpu=orin)).refusals[0]
    assert plan_model(replace(pytorch_request(precision="nvfp4"), gpu=thor)).accepted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"num_key_value_heads": 3, "num_attention_heads": 12},
            "3 key/value heads can be neither split nor",
        ),
        ({"intermediate_size": 511}, "The MLP's 511 intermediate values are not divisible by tp 2"),
    ],
)
def test_shapes_that_do_not_split_are_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    assert message in refusal(model_of(tmp_path, **values), tp=2)


def test_mamba_and_linear_attention_have_rules_of_their_own() -> None:
    nemotron = pytorch_plan("nemotron-3-nano-30b", "b300", tp=16).refusals
    assert any("64 Mamba heads in 8 groups are not divisible by tp 16" in line for line in nemotron)
    qwen = pytorch_plan("qwen3.5-27b", "b300", tp=32).refusals
    assert any("16 key and 48 value heads of linear attention are not divisible by tp 32" in line for line in qwen)


def test_a_split_that_breaks_groups_of_scales_is_refused() -> None:
    """DeepSeek's experts have 2048 columns: 16 GPUs get one block of 128 each. Dense layers have 18432: 32 get 576."""
    assert pytorch_plan("deepseek-v3", "h200", tp=16).accepted
    message = refusal("deepseek-v3", "h200", tp=32)
    assert "fp8-block needs a multiple of 128 inputs in every matrix on a GPU; 'down' has 576 at tp 32" in message


def test_experts_that_break_groups_of_scales_can_be_shared_out_instead() -> None:
    """Experts of 768 columns: 4 GPUs get 192, which groups of 128 can't cover; a group of 4 experts has all 768."""
    message = refusal("qwen3-30b-a3b", "h100", precision="int4-awq", tp=4)
    assert '"experts\' down" has 192 at tp 4, ep 1. Choose a lower --tp or a higher --ep.' in message
    assert pytorch_plan("qwen3-30b-a3b", "h100", precision="int4-awq", tp=4, ep=4).accepted


def test_weights_are_loaded_as_they_are(tmp_path: Path) -> None:
    config = tiny_config("LlamaForCausalLM")
    model = read_model_directory(write_model(tmp_path, config, dense_tensors(config)))
    message = refusal(model, precision="fp8")
    assert "The weights are bf16, and the PyTorch runtime loads them as they are, not as fp8" in message
    assert "quantize the model with ModelOpt" in message


def test_a_quantized_checkpoint_can_not_be_planned_in_16_bits() -> None:
    assert "The weights are mxfp4" in refusal("gpt-oss-20b", "h100", precision="bf16")


def test_a_precision_of_engines_alone_is_an_error() -> None:
    with pytest.raises(EngineRefusedError, match="The PyTorch runtime loads no int8-sq weights"):
        pytorch_plan(precision="int8-sq")


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptq of 4 bits"),
        ({"quant_method": "fp8"}, "fp8"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 4, "strategy": "group"}}},
            },
            "compressed-tensors (4-bit int, by group)",
        ),
    ],
)
def test_a_quantization_that_is_not_loaded_is_named_with_its_file(
    tmp_path: Path, values: dict[str, Any], name: str
) -> None:
    message = refusal(model_of(tmp_path, quantization_config=values))
    assert f"The weights are quantized with {name} (config.json)" in message


@pytest.mark.parametrize(
    "values",
    [
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {"quant_method": "nvfp4"},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "group_0": {
                    "weights": {"type": "float", "num_bits": 8, "strategy": "channel"},
                    "input_activations": {"strategy": "token"},
                }
            },
        },
    ],
    ids=["modelopt 1", "nvfp4", "compressed-tensors"],
)
def test_a_form_that_only_later_releases_read_is_refused_for_the_earlier(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    """1.2 ignores the settings without a message, and would load the quantized bytes as 16-bit weights."""
    model = model_of(tmp_path, quantization_config=values)
    target = "b200" if values["quant_method"] == "nvfp4" else "h100"
    assert pytorch_plan(model, target, tensorrt_llm="1.3.0").accepted
    message = refusal(model, target, tensorrt_llm="1.2.1")
    assert message.startswith("TensorRT-LLM 1.2.1 does not read ")
    assert "Choose --tensorrt-llm 1.3 or newer" in message


def test_the_scales_of_a_checkpoint_decide_its_kv_cache(tmp_path: Path) -> None:
    model = model_of(tmp_path, quant='{"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}')
    assert pytorch_plan(model).spec.kv_precision == "fp8"
    assert "The checkpoint has scales for an fp8 KV cache" in refusal(model, kv="fp16")


def test_an_nvfp4_cache_needs_blackwell(tmp_path: Path) -> None:
    model = model_of(tmp_path, quant='{"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}}')
    assert pytorch_plan(model, "b200").accepted
    assert "An nvfp4 KV cache needs SM 100 or newer; h100 is SM 90" in refusal(model, "h100")


def test_an_architecture_outside_upstreams_list_is_refused(tmp_path: Path) -> None:
    assert "Architecture FalconForCausalLM is not in the list of TensorRT-LLM's PyTorch runtime" in refusal(
        model_of(tmp_path, "FalconForCausalLM")
    )


@pytest.mark.parametrize("architecture", ["T5ForConditionalGeneration", "Qwen2ForRewardModel"])
def test_a_model_of_another_kind_is_refused(tmp_path: Path, architecture: str) -> None:
    kind = NOT_FOR_COMPLETIONS[architecture]
    assert f"Architecture {architecture} is {kind}, which completes no text" in refusal(
        model_of(tmp_path, architecture)
    )


def test_unknown_layers_need_the_weights(tmp_path: Path) -> None:
    """Upstream serves it, but nothing here knows what a layer has besides attention."""
    config = tiny_config("Phi3ForCausalLM")
    assert "The layers of Phi3ForCausalLM are not known here" in refusal(model_of(tmp_path / "a", "Phi3ForCausalLM"))
    plan = pytorch_plan(read_model_directory(write_model(tmp_path / "b", config, dense_tensors(config))))
    assert plan.accepted
    assert any("estimated as full attention in every layer" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("version", "release"),
    [("1.2.1", (1, 2)), ("1.3.0rc26", (1, 3)), ("1.3", (1, 3)), ("1.3rc1", (1, 3)), ("1", None), ("v1.2", None)],
)
def test_releases_are_read_from_versions(version: str, release: tuple[int, int] | None) -> None:
    assert parse_release(version) == release


def test_each_release_knows_what_the_one_before_knew() -> None:
    for architecture, first in ARCHITECTURES.items():
        assert support(architecture, first) is Support.YES
        assert support(architecture, (1, 4)) is Support.YES
    assert support("Qwen3_5MoeForCausalLM", (1, 2)) is Support.LATER
    assert not set(ARCHITECTURES) & set(NOT_FOR_COMPLETIONS)


def test_every_refusal_ends_with_advice() -> None:
    plans = [
        pytorch_plan(model, target, tp=tp, pp=pp, ep=ep, kv=kv, max_batch_size=600, tensorrt_llm=version)
        for model in ("llama-3.1-70b", "gpt-oss-20b", "nemotron-3-nano-30b", "deepseek-v3")
        for target in ("a100", "b200")
        for tp, pp, ep in ((1, 1, 1), (3, 90, 2))
        for kv in ("auto", "int8")
        for version in ("1.1.0", "1.2.1")
    ]
    messages = {message for plan in plans for message in plan.refusals}
    assert len(messages) > 20
    assert [line for line in messages if not re.search(r"\b(?:Choose|Use|Omit|No --\w+ is possible)\b", line)] == []
