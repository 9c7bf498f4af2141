"""Plans: steps that only hold what upstream has, names that identify, and no refused combination in any command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from build_engine.errors import EngineRefusedError
from build_engine.gpu.building.convert import make_parser
from build_engine.gpu.planning.model_config import parse_model_config, read_model_config
from build_engine.gpu.planning.plan_json import plan_json
from build_engine.gpu.planning.planner import PlanRequest, make_plan
from tests.support.plan_requests import MODELS, plan_for, plan_requests, request_for

UPSTREAM = json.loads((Path(__file__).parents[4] / "data" / "tensorrt_llm_build_api.json").read_text())
FLAGS = set(UPSTREAM["trtllm-build"]["flags"])


def flags_of(argv: tuple[str, ...]) -> dict[str, str]:
    """--name value pairs of trtllm-build."""
    names, values = argv[1::2], argv[2::2]
    assert len(names) == len(values)
    return {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}


@given(plan_requests())
@settings(max_examples=400, deadline=None)
def test_a_refused_combination_has_no_commands_and_an_accepted_one_breaks_no_rule(request: PlanRequest) -> None:
    """The rules are written down a second time here, from the facts rather than from `refusals`."""
    plan = make_plan(request)
    chosen, model = plan.spec, request.model
    assert plan.accepted == (not plan.refusals) == bool(plan.steps) == (plan.engine_dir is not None)
    if not plan.accepted:
        return
    sm, weights, kv = chosen.gpu.sm, chosen.precision.name, chosen.kv.name
    assert sm >= 89 or not ({weights, kv} & {"fp8", "w4a8-awq", "nvfp4"})
    assert sm >= 100 or weights != "nvfp4"
    assert sm < 100 or (not weights.startswith("int") and weights != "w4a8-awq" and kv != "int8")
    assert model.heads % chosen.tp == model.vocab_size % chosen.tp == model.layers % chosen.pp == 0
    assert chosen.limits.max_seq_len <= model.max_seq_len
    assert plan.memory.total_bytes <= plan.memory.gpu_bytes
    assert chosen.limits.max_batch_size <= plan.memory.largest_batch_that_fits


@given(plan_requests())
@settings(max_examples=200, deadline=None)
def test_commands_hold_only_what_upstream_and_our_own_command_take(request: PlanRequest) -> None:
    plan = make_plan(request)
    if not plan.accepted:
        return
    checkpoint, engine, tokenizer = plan.steps
    options = make_parser().parse_args(checkpoint.argv[3:])
    assert checkpoint.argv[:3] == ("python3", "-m", "build_engine.gpu.building.convert")
    assert (options.tp, options.pp) == (request.options.tp, request.options.pp)
    assert engine.argv[0] == "trtllm-build"
    flags = flags_of(engine.argv)
    assert flags.keys() <= FLAGS
    assert flags["output_dir"] == str(plan.engine_dir)
    assert flags["checkpoint_dir"] == str(options.output)
    assert tokenizer.argv[-1] == f"{plan.engine_dir}/tokenizer.json"


@given(plan_requests())
@settings(max_examples=100, deadline=None)
def test_attention_flags_are_what_build_would_leave_on(request: PlanRequest) -> None:
    plan = make_plan(request)
    if not plan.accepted:
        return
    flags = flags_of(plan.steps[1].argv)
    weights, kv = plan.spec.precision.name, plan.spec.kv.name
    has_fp8_attention = weights in ("fp8", "w4a8-awq", "nvfp4") and kv == "fp8"
    is_paged = weights != "fp32" and kv != "int8" and (kv != "fp8" or has_fp8_attention)
    assert flags["use_fp8_context_fmha"] == ("enable" if has_fp8_attention else "disable")
    assert flags["use_paged_context_fmha"] == ("enable" if is_paged else "disable")
    assert any("Paged context attention is off" in note for note in plan.notes) == (not is_paged)
    assert ("gemm_plugin" in flags) == (weights in ("fp32", "fp16", "bf16"))


@given(plan_requests())
@settings(max_examples=100, deadline=None)
def test_the_same_request_gives_the_same_plan(request: PlanRequest) -> None:
    assert make_plan(request) == make_plan(request)
    assert json.dumps(plan_json(make_plan(request)))


def test_the_directory_is_model_target_precision_and_version() -> None:
    plan = plan_for("llama-3.1-70b", "h100", tp=2, pp=2)
    assert plan.engine_dir
    *start, version = plan.engine_dir.parts
    assert start == [".run", "engines", "llama-3.1-70b", "h100", "fp8-tp2pp2"]
    assert version.startswith("1.2.1-")
    assert len(version) == len("1.2.1-") + 12


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"kv": "fp16"},
        {"tp": 2},
        {"pp": 2},
        {"max_batch_size": 7},
        {"max_seq_len": 1024},
        {"max_num_tokens": 4096},
        {"calibration": "my-texts"},
        {"tensorrt_llm": "1.1.0"},
        {"model": replace(MODELS["llama-3.1-8b"], sha256="0" * 64)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_engine_changes_its_directory(change: dict[str, Any]) -> None:
    assert plan_for(**change).engine_dir != plan_for().engine_dir


def test_caches_that_lead_to_the_same_flags_still_get_their_own_directory() -> None:
    plans = [plan_for(precision="bf16", kv=kv) for kv in ("fp8", "int8")]
    assert flags_of(plans[0].steps[1].argv).keys() == flags_of(plans[1].steps[1].argv).keys()
    assert plans[0].engine_dir != plans[1].engine_dir


def test_where_the_model_lies_does_not_change_the_directory() -> None:
    request = request_for()
    elsewhere = replace(request, model_dir=Path("/somewhere/else"))
    assert make_plan(elsewhere).engine_dir == make_plan(request).engine_dir


def test_the_calibration_source_only_counts_where_text_is_read() -> None:
    names = {plan_for(precision="bf16", calibration=source).engine_dir for source in ("one", "two")}
    assert len(names) == 1


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"precision": "bf16"}, "convert"),
        ({"precision": "int8-wo"}, "convert"),
        ({"precision": "fp8"}, "quantise"),
        ({"precision": "int4-awq"}, "quantise"),
        ({"precision": "bf16", "kv": "fp8"}, "quantise"),
    ],
    ids=["bf16", "weight-only", "fp8", "awq", "fp8-kv"],
)
def test_text_is_read_only_for_what_needs_calibration(options: dict[str, Any], step: str) -> None:
    first = plan_for(**options).steps[0]
    assert first.name == step
    assert ("--calibration" in first.argv) == (step == "quantise")


def test_an_fp32_engine_has_no_fused_attention_and_says_its_input_length() -> None:
    flags = flags_of(plan_for("smollm2-135m", "h100", precision="fp32").steps[1].argv)
    assert flags["context_fmha"] == flags["use_paged_context_fmha"] == "disable"
    assert flags["max_input_len"] == flags["max_seq_len"]


def test_notes_tell_of_calibration_sliding_windows_new_gpus_and_several_nodes() -> None:
    assert any("--calibration DIR" in note for note in plan_for().notes)
    windowed = replace(MODELS["mistral-7b"], sliding_window=4096)
    assert any("last 4096 tokens" in note for note in plan_for(windowed).notes)
    assert any("SM 120" in note for note in plan_for(target="rtx-pro-6000").notes)
    assert any("16 GPUs" in note for note in plan_for("llama-3.1-70b", tp=16).notes)


BASE = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32_768,
    "vocab_size": 1000,
}


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({}, "kv_heads", 4),
        ({}, "head_dim", 16),
        ({}, "qkv_bias", True),
        ({}, "output_bias", False),
        ({}, "dtype", "float32"),
        ({"dtype": "bfloat16"}, "dtype", "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "dtype", "float16"),
        ({"head_dim": 32}, "head_dim", 32),
        ({"architectures": ["Qwen3ForCausalLM"]}, "qk_norm", True),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "max_seq_len", 32_768),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "max_seq_len", 65_536),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}},
            "max_seq_len",
            32_768,
        ),
        ({"sliding_window": 4096, "use_sliding_window": False}, "sliding_window", None),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized_with", "awq"),
    ],
)
def test_what_is_read_from_a_config(change: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(parse_model_config(BASE | change, "m"), field) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": None}, "vocab_size = None"),
        ({"hidden_size": "64"}, "hidden_size = '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"architectures": []}, "architectures = []"),
        ({"torch_dtype": "int3"}, "torch_dtype = 'int3'"),
    ],
)
def test_a_config_that_lacks_something_is_refused_by_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineRefusedError, match=words.replace("[", r"\[").replace("]", r"\]")):
        parse_model_config(BASE | change, "m")


@pytest.mark.parametrize(
    ("content", "words"), [(None, "has no config.json"), ("{", "is not valid JSON"), ("[]", "not a JSON object")]
)
def test_a_directory_without_a_readable_config_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(EngineRefusedError, match=words):
        read_model_config(tmp_path)


def test_copies_of_one_model_have_one_hash() -> None:
    hashes = {parse_model_config(BASE | {"transformers_version": v}, "m").sha256 for v in ("4.5", "4.6")}
    assert len(hashes) == 1
