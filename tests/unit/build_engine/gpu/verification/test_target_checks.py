"""`verify` of an engine for GPUs, with and without (a stand-in for) TensorRT-LLM. Not run on the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import pytest

from build_engine.gpu.building.run import inspect_machine, run_plan
from build_engine.gpu.planning.model_config import read_model_config
from build_engine.gpu.planning.options import GpuOptions
from build_engine.gpu.planning.planner import PlanRequest, make_plan
from build_engine.progress import SilentProgress
from build_engine.targets.gpus import GPUS
from build_engine.targets.nvml import Nvml, NvmlGpu
from llm_pipeline.engine_files.manifest import EngineFile, EngineManifest, sha256_of
from tests.fakes.tensorrt_llm_build import FakeNvml, uninstall, write_model
from tests.support.build_engine_program import run_program

GOOD, FAILED, INCOMPLETE = 0, 1, 4
Checks = dict[str, dict[str, str]]


class Verify(Protocol):
    """Runs `verify`; returns its exit status and the checks by name."""

    def __call__(self, engine_dir: Path, *options: str | Path, nvml: Nvml | None = None) -> tuple[int, Checks]: ...


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_model(tmp_path / "smollm2")


@pytest.fixture
def engine(tmp_path: Path, model_dir: Path, _tensorrt_llm: None) -> Path:
    options = GpuOptions(tp=3, root=tmp_path / "engines")
    plan = make_plan(PlanRequest(read_model_config(model_dir), model_dir, GPUS["h100"], None, "bf16", options))
    return run_plan(plan, model_dir, inspect_machine(plan, FakeNvml()), SilentProgress()).engine_dir


@pytest.fixture
def verify(capfd: pytest.CaptureFixture[str]) -> Verify:
    def run(engine_dir: Path, *options: str | Path, nvml: Nvml | None = None) -> tuple[int, Checks]:
        status = run_program("verify", engine_dir, "--json", *options, nvml=nvml or FakeNvml())
        document = json.loads(capfd.readouterr().out)
        return status, {check["name"]: check for check in document["checks"]}

    return run


def change_config(engine_dir: Path, section: str, **values: Any) -> None:
    """Upstream's config.json says something else, and the manifest's hash of it is right."""
    path = engine_dir / "config.json"
    config = json.loads(path.read_text())
    config[section] |= values
    path.write_text(json.dumps(config))
    manifest = EngineManifest.load(engine_dir)
    entry = EngineFile(sha256=sha256_of(path), size_bytes=path.stat().st_size)
    manifest.model_copy(update={"files": {**manifest.files, path.name: entry}}).save(engine_dir)


def test_a_good_engine_is_loaded_and_compared_with_its_source(engine: Path, model_dir: Path, verify: Verify) -> None:
    status, checks = verify(engine, "--model", model_dir)
    assert status == GOOD
    assert checks["load and generate"]["detail"] == "128 tokens for 8 prompts"
    assert checks["accuracy"]["detail"].startswith("100% of the source's greedy tokens")
    assert checks["build_config.max_batch_size"]["detail"] == "64"


def test_without_tensorrt_llm_files_and_limits_are_checked_and_the_rest_is_named(
    engine: Path, tmp_path: Path, model_dir: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(tmp_path, monkeypatch)
    status, checks = verify(engine, "--model", model_dir)
    assert status == INCOMPLETE
    assert checks["rank2.engine"]["outcome"] == "pass"
    assert checks["build_config.max_seq_len"]["outcome"] == "pass"
    for name in ("load and generate", "accuracy"):
        assert checks[name]["outcome"] == "not checked"
        assert "This engine needs 3 x SM 90 and TensorRT-LLM 1.2.1" in checks[name]["detail"]


def test_another_gpu_leaves_the_same_unchecked(engine: Path, verify: Verify) -> None:
    status, checks = verify(engine, nvml=FakeNvml((NvmlGpu("NVIDIA L4", 89, 24 << 30),)))
    assert status == INCOMPLETE
    assert checks["load and generate"]["detail"].endswith("this machine has 0 x SM 90 and 1.2.1.")


def test_without_a_source_accuracy_is_not_checked(engine: Path, verify: Verify) -> None:
    status, checks = verify(engine)
    assert status == INCOMPLETE
    assert checks["load and generate"]["outcome"] == "pass"
    assert "Name the checkpoint with --model" in checks["accuracy"]["detail"]


def test_a_source_that_is_not_there_is_refused_before_anything_is_loaded(
    engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_program("verify", engine, "--model", "/nowhere", nvml=FakeNvml()) == 3
    shown = capfd.readouterr().err
    assert "No model directory /nowhere" in shown
    assert "load the engine" not in shown


def test_another_source_is_told_apart(engine: Path, tmp_path: Path, verify: Verify) -> None:
    status, checks = verify(engine, "--model", write_model(tmp_path / "other", weights="a fine-tune"))
    assert status == FAILED
    assert "not the checkpoint that the engine was built from" in checks["accuracy"]["detail"]


@pytest.mark.parametrize(
    ("options", "status"),
    [([], FAILED), (["--threshold", "0.25"], GOOD), (["--threshold", "0.26"], FAILED)],
    ids=["of-the-precision", "at", "above"],
)
def test_an_engine_that_says_something_else_fails_unless_the_threshold_is_lowered(
    engine: Path, model_dir: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch, options: list[str], status: int
) -> None:
    monkeypatch.setenv("FAKE_ENGINE_DIFFERS_FROM", "4")  # of 16
    found, checks = verify(engine, "--model", model_dir, *options)
    assert found == status
    assert checks["accuracy"]["detail"].startswith("25% of the source's greedy tokens")
    assert ("assumed, not measured" in checks["accuracy"]["detail"]) == (not options)


def test_perplexity_is_the_other_gate(
    engine: Path, model_dir: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, checks = verify(engine, "--model", model_dir, "--gate", "perplexity")
    assert status == GOOD
    assert "1.000 times, maximum 1.01" in checks["accuracy"]["detail"]
    monkeypatch.setenv("FAKE_ENGINE_DIFFERS_FROM", "0")
    assert verify(engine, "--model", model_dir, "--gate", "perplexity", "--threshold", "1.0001")[0] == FAILED


def test_an_engine_that_does_not_load_fails_in_upstreams_words(
    engine: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE_FAILS", "1")
    status, checks = verify(engine)
    assert status == FAILED
    assert "no deserializer (fake)" in checks["load and generate"]["detail"]
    assert checks["accuracy"]["outcome"] == "not checked"


@pytest.mark.parametrize(
    ("section", "values", "name"),
    [
        ("build_config", {"max_batch_size": 8}, "build_config.max_batch_size"),
        ("build_config", {"max_seq_len": 100}, "build_config.max_seq_len"),
        ("build_config", {"max_num_tokens": 100}, "build_config.max_num_tokens"),
        (
            "build_config",
            {"plugin_config": {"use_paged_context_fmha": False}},
            "build_config.plugin_config.use_paged_context_fmha",
        ),
        ("pretrained_config", {"vocab_size": 7}, "pretrained_config.vocab_size"),
        ("pretrained_config", {"mapping": {"tp_size": 1, "pp_size": 1}}, "pretrained_config.mapping.tp_size"),
        (
            "pretrained_config",
            {"quantization": {"kv_cache_quant_algo": "FP8"}},
            "pretrained_config.quantization.kv_cache_quant_algo",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limits_that_upstreams_own_file_contradicts_fail_without_loading(
    engine: Path, verify: Verify, section: str, values: dict[str, Any], name: str
) -> None:
    change_config(engine, section, **values)
    status, checks = verify(engine)
    assert status == FAILED
    assert checks[name]["outcome"] == "fail"
    assert "load and generate" not in checks


def test_what_upstreams_file_does_not_say_is_not_held_against_the_engine(
    engine: Path, model_dir: Path, verify: Verify
) -> None:
    change_config(engine, "build_config", plugin_config={})
    status, checks = verify(engine, "--model", model_dir)
    assert status == INCOMPLETE
    assert checks["build_config.plugin_config.use_paged_context_fmha"]["outcome"] == "not checked"


def test_a_missing_rank_fails(engine: Path, verify: Verify) -> None:
    manifest = EngineManifest.load(engine)
    (engine / "rank2.engine").unlink()
    files = {name: entry for name, entry in manifest.files.items() if name != "rank2.engine"}
    manifest.model_copy(update={"files": files}).save(engine)
    status, checks = verify(engine)
    assert status == FAILED
    assert checks["one engine for each GPU"]["detail"] == "2 files for tp 3 x pp 1"


def test_the_table_says_what_was_not_checked(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    uninstall(tmp_path, monkeypatch)
    run_program("verify", engine, nvml=FakeNvml())
    shown = capfd.readouterr().out
    assert "not checked" in shown
    assert "Nothing failed, but not everything was checked" in shown
    assert "The engine is valid" not in shown


def test_inspect_shows_what_the_engine_is_bound_to(engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_program("inspect", engine)
    shown = capfd.readouterr().out
    assert "3 x SM 90" in shown
    assert "TensorRT-LLM 1.2.1" in shown
