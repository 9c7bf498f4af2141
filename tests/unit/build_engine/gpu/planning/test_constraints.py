"""Every constraint, separately and together. A refusal has the value, the limit, and an alternative."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from build_engine.gpu.planning.model_config import ModelConfig
from build_engine.gpu.planning.planner import make_plan
from build_engine.targets.gpus import GPUS, Gpu
from tests.support.plan_requests import MODELS, plan_for, request_for

LLAMA = MODELS["llama-3.1-8b"]


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("a100", {"precision": "fp8"}, ["fp8 needs SM 89", "a100 is SM 80", "bf16", "int4-awq"]),
        ("a10", {"precision": "w4a8-awq"}, ["SM from 89 to below 100", "a10 is SM 86"]),
        ("h100", {"precision": "nvfp4"}, ["nvfp4 needs SM 100", "h100 is SM 90", "fp8"]),
        ("b200", {"precision": "int8-wo"}, ["int8-wo needs an SM below 100", "b200 is SM 100", "nvfp4"]),
        ("b200", {"precision": "int4-wo"}, ["int4-wo needs an SM below 100"]),
        ("b300", {"precision": "int4-awq"}, ["int4-awq needs an SM below 100", "b300 is SM 103"]),
        ("rtx-pro-6000", {"precision": "int8-sq"}, ["int8-sq needs an SM below 100", "SM 120"]),
        ("gb200", {"precision": "w4a8-awq"}, ["SM from 89 to below 100", "gb200 is SM 100"]),
        ("a100", {"kv": "fp8"}, ["An fp8 KV cache needs SM 89", "a100", "fp16 or int8"]),
        ("b200", {"kv": "int8"}, ["An int8 KV cache needs an SM below 100", "fp16 or fp8"]),
        ("h100", {"precision": "fp32", "kv": "fp16"}, ["keeps its KV cache in fp32", "auto"]),
        ("h100", {"pp": 5}, ["32 layers", "pp 5", "--pp 1, 2, 4, 8 or 16"]),
        ("h100", {"pp": 64}, ["32 layers", "pp 64"]),
        ("h100", {"max_seq_len": 131_073}, ["131073", "131072", "--max-seq-len 131072"]),
        ("h100", {"max_seq_len": 1}, ["no room", "--max-seq-len 2 or more"]),
        ("h100", {"max_batch_size": 100, "max_num_tokens": 64}, ["64", "100", "--max-num-tokens 100"]),
        ("h100", {"max_batch_size": 5000}, ["5000 requests", "h100", "--max-batch-size 115"]),
        ("h100", {"tensorrt_llm": "1.3.0"}, ["TensorRT-LLM 1.3.0", "1.1 and 1.2", "1.2.1", "--runtime pytorch"]),
        ("h100", {"tensorrt_llm": "1.0.0"}, ["TensorRT-LLM 1.0.0", "1.1 and 1.2", "1.2.1"]),
        ("h100", {"tensorrt_llm": "latest"}, ["latest", "1.2.1"]),
        ("rtx-pro-6000", {"tensorrt_llm": "1.1.0"}, ["SM 120", "from 1.2 on"]),
    ],
)
def test_a_refusal_has_the_value_its_limit_and_an_alternative(
    target: str, options: dict[str, Any], words: list[str]
) -> None:
    refusals = plan_for(LLAMA, target, **options).refusals
    assert len(refusals) == 1
    assert all(word in refusals[0] for word in words), refusals[0]


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (replace(LLAMA, heads=30), {"tp": 4}, ["30 attention heads", "tp 4", "Choose --tp 1 or 2."]),
        (replace(LLAMA, vocab_size=128_257), {"tp": 2}, ["128257 rows", "tp 2", "Choose --tp 1."]),
        (replace(LLAMA, vocab_size=128_258), {"tp": 2, "pp": 2}, ["128258 rows", "4 GPUs", "logit_bias", "--pp 1."]),
        (
            replace(LLAMA, intermediate_size=14_335, kv_heads=8),
            {"tp": 2, "precision": "bf16"},
            ["14335 intermediate", "tp 2"],
        ),
        (replace(LLAMA, kv_heads=6, heads=24), {"tp": 4}, ["6 key/value heads", "tp 4"]),
        (
            replace(LLAMA, architecture="BloomForCausalLM"),
            {},
            ["BloomForCausalLM", "LlamaForCausalLM", "--runtime pytorch"],
        ),
        (replace(LLAMA, quantized_with="gptq"), {}, ["already quantized with gptq", "original", "--runtime pytorch"]),
        (MODELS["mixtral-8x7b"], {"precision": "int8-sq"}, ["int8-sq supports dense MLPs only", "8 experts", "fp8"]),
        (MODELS["smollm2-135m"], {"precision": "int4-awq"}, ["multiple of 128 inputs", "576", "fp8"]),
        (MODELS["llama-3.1-70b"], {"precision": "bf16"}, ["Weights, activations", "h100", "--tp"]),
    ],
    ids=[
        "heads",
        "vocabulary",
        "pp",
        "mlp",
        "kv-heads",
        "architecture",
        "quantized",
        "experts",
        "groups",
        "weights",
    ],
)
def test_an_unsuitable_model_is_refused(model: ModelConfig, options: dict[str, Any], words: list[str]) -> None:
    refusals = plan_for(model, "h100", **options).refusals
    assert len(refusals) == 1
    assert all(word in refusals[0] for word in words), refusals[0]


def test_every_violated_constraint_is_reported() -> None:
    refusals = plan_for(LLAMA, "a100", precision="fp8", kv="fp8", tp=3, pp=5, max_seq_len=10**6).refusals
    for word in ("fp8 needs", "fp8 KV cache", "attention heads", "key/value heads", "layers", "1000000"):
        assert any(word in refusal for refusal in refusals), word


def test_a_gpu_older_than_upstream_supports_is_refused() -> None:
    turing = Gpu("t4", "T4", 75, 16_000_000_000)
    plan = make_plan(replace(request_for("smollm2-135m"), gpu=turing, precision="fp16"))
    assert any("t4 is SM 75" in refusal and "SM 80" in refusal for refusal in plan.refusals)


def test_more_gpus_than_this_machine_has_are_refused() -> None:
    plan = plan_for(LLAMA, gpu_count=2, tp=4)
    assert plan.refusals == (
        "tp 4 x pp 1 needs 4 GPUs; this machine has 2. Choose --tp and --pp with a product of at most 2, "
        "or name the target to plan for another machine.",
    )


@pytest.mark.parametrize("target", GPUS)
def test_auto_precision_is_accepted_on_every_target(target: str) -> None:
    assert plan_for("smollm2-135m", target).refusals == ()


@pytest.mark.parametrize(
    ("target", "precision", "kv"),
    [
        ("a100", "bf16", "fp16"),
        ("a40", "bf16", "fp16"),
        ("l40s", "fp8", "fp8"),
        ("h100", "fp8", "fp8"),
        ("b200", "nvfp4", "fp8"),
        ("b300", "nvfp4", "fp8"),
        ("rtx-pro-6000", "nvfp4", "fp8"),
    ],
)
def test_auto_follows_the_gpu(target: str, precision: str, kv: str) -> None:
    chosen = plan_for(LLAMA, target).spec
    assert (chosen.precision.name, chosen.kv.name) == (precision, kv)


def test_auto_keeps_a_float16_model_in_float16() -> None:
    assert plan_for(replace(LLAMA, dtype="float16"), "a100").spec.precision.name == "fp16"
