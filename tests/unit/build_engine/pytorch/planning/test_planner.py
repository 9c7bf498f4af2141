"""Plans of model directories: what is resolved, the directory's name, notes and the plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from build_engine.pytorch.checkpoint.model_directory import read_model_directory
from build_engine.pytorch.planning.plan_json import plan_json
from build_engine.pytorch.planning.planner import PyTorchRequest, plan_model
from build_engine.targets.gpus import GPUS
from tests.support.pytorch_models import MODELS, dense_tensors, pytorch_plan, pytorch_requests, tiny_config, write_model


@given(pytorch_requests())
@settings(max_examples=300, deadline=None)
def test_a_plan_has_a_directory_or_refusals_and_violates_no_rule(request: PyTorchRequest) -> None:
    """Repeats the rules independently of `constraints`."""
    plan = plan_model(request)
    spec, memory = plan.spec, plan.memory
    assert plan.accepted == (not plan.refusals) == (plan.engine_dir is not None)
    assert json.dumps(plan_json(plan))
    if not plan.accepted:
        return
    assert memory is not None
    assert memory.fits
    assert memory.total_bytes <= memory.gpu_bytes
    assert spec.limits.max_batch_size <= memory.largest_batch_that_fits
    assert spec.limits.max_seq_len <= request.model.max_seq_len
    assert spec.gpu.sm in spec.format.sms
    assert spec.tp % spec.ep == 0
    assert spec.kv_precision != "int8"
    assert (1, 2) <= tuple(map(int, spec.trtllm_version.replace("rc", ".").split(".")[:2])) < (1, 5)


def test_everything_that_is_auto_is_resolved() -> None:
    plan = pytorch_plan("gpt-oss-120b", "h200")
    spec = plan.spec
    assert (spec.precision, spec.kv_precision, spec.kv_cache_dtype) == ("mxfp4", "bf16", "auto")
    assert (spec.limits.max_batch_size, spec.limits.max_seq_len, spec.limits.max_num_tokens) == (64, 8192, 8192)
    assert pytorch_plan("gpt-oss-120b", "h100").spec.limits.max_batch_size < 64  # all that fits


def test_an_fp8_cache_is_asked_of_the_runtime() -> None:
    spec = pytorch_plan(kv="fp8").spec
    assert (spec.kv_precision, spec.kv_cache_dtype) == ("fp8", "fp8")


def test_the_directory_names_what_it_is_for() -> None:
    plan = pytorch_plan("qwen3-30b-a3b", "h200", tp=4, ep=4, tensorrt_llm="1.3.0", root=Path("engines"))
    assert plan.engine_dir is not None
    assert plan.engine_dir.parent == Path("engines/qwen3-30b-a3b/h200/bf16-tp4pp1ep4-pytorch")
    assert plan.engine_dir.name.startswith("1.3.0-")


@pytest.mark.parametrize(
    "change",
    [
        {"tp": 2},
        {"pp": 2},
        {"kv": "fp8"},
        {"max_batch_size": 2},
        {"max_seq_len": 100},
        {"max_num_tokens": 100},
        {"target": "h200"},
        {"tensorrt_llm": "1.2.1"},
    ],
    ids=str,
)
def test_every_input_changes_the_directory(change: dict[str, Any]) -> None:
    assert pytorch_plan(**change).engine_dir != pytorch_plan().engine_dir


def test_the_same_input_gives_the_same_plan() -> None:
    assert pytorch_plan() == pytorch_plan()


def notes_of(model: str, target: str = "b300", **options: Any) -> str:
    return "\n".join(pytorch_plan(model, target, **options).notes)


def test_notes_say_what_the_estimate_leaves_out(tmp_path: Path) -> None:
    assert "computed from config.json" in notes_of("gemma-3-27b")
    assert "no tokenizer.json" in notes_of("gemma-3-27b")
    config = tiny_config("LlamaForCausalLM")
    write_model(tmp_path, config, dense_tensors(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert plan_model(PyTorchRequest(read_model_directory(tmp_path), GPUS["b300"])).notes == ()


def test_notes_name_windows_states_and_other_precisions() -> None:
    assert "18 of 36 layers attend to the last 128 tokens only" in notes_of("gpt-oss-120b")
    assert "128 tokens" not in notes_of("gpt-oss-120b", max_seq_len=100)
    assert "Hybrid model" in notes_of("qwen3.5-27b")
    assert "this is the plan of a checkpoint in nvfp4" in notes_of("llama-3.1-8b", precision="nvfp4")
    assert "MPI has to span several nodes" in notes_of("llama-3.1-70b", tp=8, pp=2)
    assert "--calibration has no effect" in notes_of("llama-3.1-8b", calibration="pileval")


def test_the_plain_data_has_the_documented_keys() -> None:
    data = plan_json(pytorch_plan("nemotron-3-nano-30b", "h200"))
    assert (data["runtime"], data["accepted"], data["steps"]) == ("pytorch", True, [])
    assert data["model"]["parameters"] == 31_577_940_288
    assert data["memory"]["state_bytes"] > 0
    assert data["memory"]["assumed"].keys() == {"runtime_bytes", "cuda_graph_bytes", "kv_cache_fraction"}


def test_parameters_are_null_for_layers_that_are_not_known(tmp_path: Path) -> None:
    model = read_model_directory(write_model(tmp_path, tiny_config("Phi3ForCausalLM")))
    data = plan_json(plan_model(PyTorchRequest(model, GPUS["h100"])))
    assert (data["accepted"], data["memory"], data["model"]["parameters"]) == (False, None, None)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model_is_served_by_some_number_of_the_largest_gpus(model: str) -> None:
    plans = [pytorch_plan(model, "b300", tp=tp) for tp in (1, 2, 4, 8)]
    assert any(plan.accepted for plan in plans)
