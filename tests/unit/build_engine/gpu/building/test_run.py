"""The step runner with stand-ins: a trtllm-build script on PATH, and a tensorrt_llm package on PYTHONPATH.

What is shown is ours: order, log, going on after a failure, and an engine that appears whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from build_engine.artifact.file_checks import file_problems
from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.gpu.building.run import inspect_machine, run_plan
from build_engine.gpu.building.timing_cache import private_timings
from build_engine.gpu.installation import can_build
from build_engine.gpu.planning.model_config import read_model_config
from build_engine.gpu.planning.options import GpuOptions
from build_engine.gpu.planning.planner import Plan, PlanRequest, make_plan
from build_engine.progress import SilentProgress
from build_engine.targets.gpus import GPUS
from build_engine.targets.nvml import NvmlGpu
from llm_pipeline.engine_files.manifest import Calibration, EngineManifest, GpuBuild
from tests.fakes.tensorrt_llm_build import H100, FakeNvml, write_model
from tests.support.build_engine_program import RecordingProgress


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_model(tmp_path / "smollm2")


@pytest.fixture
def plan(tmp_path: Path, model_dir: Path) -> Plan:
    return plan_for(model_dir, tmp_path, precision="bf16", tp=3)


def plan_for(model_dir: Path, tmp_path: Path, precision: str, **options: Any) -> Plan:
    gpu_options = GpuOptions(root=tmp_path / "engines", **options)
    return make_plan(PlanRequest(read_model_config(model_dir), model_dir, GPUS["h100"], None, precision, gpu_options))


def run(plan: Plan, model_dir: Path, force: bool = False, **options: Any) -> tuple[Path, EngineManifest, bool]:
    """Builds, by default without the smoke test, which starts a process."""
    options = {"with_smoke_test": False, **options}
    result = run_plan(plan, model_dir, inspect_machine(plan, FakeNvml()), SilentProgress(), force, **options)
    return result.engine_dir, result.manifest, result.reused


def log_of(engine_dir: Path) -> str:
    return engine_dir.with_name(f"{engine_dir.name}.log").read_text()


@pytest.mark.usefixtures("_tensorrt_llm")
def test_an_engine_is_built_step_by_step_and_described(plan: Plan, model_dir: Path) -> None:
    engine_dir, manifest, reused = run(plan, model_dir, with_smoke_test=True)
    assert engine_dir == plan.engine_dir
    assert not reused
    assert set(manifest.files) == {
        *("build.json", "config.json", "tokenizer.json"),
        *(f"rank{rank}.engine" for rank in range(3)),
    }
    assert file_problems(engine_dir, manifest) == []
    assert manifest == EngineManifest.load(engine_dir)
    assert list(manifest.tools) == ["triton-completions"]
    assert (manifest.tokens.bos, manifest.tokens.eos, manifest.limits.context_length) == (1, [2, 0], 8192)
    assert manifest.gpu == GpuBuild(
        gpu_name="NVIDIA H100 80GB HBM3",
        sm=90,
        driver="590.44.01",
        tensorrt_llm="1.2.1",
        tensorrt="10.14.1.48",
        cuda="13.1",
        tp=3,
        pp=1,
        kv_cache_precision="fp16",
        max_batch_size=64,
        max_num_tokens=8192,
        has_paged_context=True,
        calibration=None,
        load_tested=True,
    )
    plan_written = json.loads((engine_dir / "build.json").read_text())["plan"]
    assert [step["name"] for step in plan_written["steps"]] == ["convert", "engine", "tokenizer"]


@pytest.mark.usefixtures("_tensorrt_llm")
def test_the_log_stays_and_the_checkpoint_goes(plan: Plan, model_dir: Path) -> None:
    engine_dir, _, _ = run(plan, model_dir)
    log = log_of(engine_dir)
    assert log.index("converting rank 0") < log.index("converting rank 2") < log.index("built 3 ranks")
    visible = [path.name for path in engine_dir.parent.iterdir() if not path.name.startswith(".")]
    assert sorted(visible) == [engine_dir.name, f"{engine_dir.name}.log"]


@pytest.mark.usefixtures("_tensorrt_llm")
def test_after_a_failure_the_build_goes_on_where_it_stopped(
    plan: Plan, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BUILD_FAILS", "1")
    with pytest.raises(BuildEngineError, match=r"(?s)Step engine failed \(status 1\).*out of memory \(fake\)"):
        run(plan, model_dir)
    assert plan.engine_dir
    assert not plan.engine_dir.exists()
    monkeypatch.delenv("FAKE_BUILD_FAILS")
    engine_dir, _, _ = run(plan, model_dir)
    assert log_of(engine_dir).count("converting rank 0") == 1


@pytest.mark.usefixtures("_tensorrt_llm")
def test_a_checkpoint_of_other_weights_is_made_again(
    plan: Plan, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BUILD_FAILS", "1")
    with pytest.raises(BuildEngineError):
        run(plan, model_dir)
    monkeypatch.delenv("FAKE_BUILD_FAILS")
    (model_dir / "model.safetensors").write_text("other weights")
    engine_dir, _, _ = run(plan, model_dir)
    assert log_of(engine_dir).count("converting rank 0") == 2


@pytest.mark.usefixtures("_tensorrt_llm")
def test_a_good_engine_is_kept_and_a_damaged_one_built_again(plan: Plan, model_dir: Path) -> None:
    engine_dir, manifest, _ = run(plan, model_dir)
    assert run(plan, model_dir) == (engine_dir, manifest, True)
    (engine_dir / "rank1.engine").write_text("damaged")
    assert not run(plan, model_dir)[2]
    assert (engine_dir / "rank1.engine").read_text() == "engine 1"


@pytest.mark.usefixtures("_tensorrt_llm")
def test_an_engine_of_other_weights_with_the_same_name_is_not_replaced_unasked(plan: Plan, model_dir: Path) -> None:
    run(plan, model_dir)
    (model_dir / "model.safetensors").write_text("a fine-tune")
    with pytest.raises(EngineRefusedError, match="engine of other weights"):
        run(plan, model_dir)
    assert not run(plan, model_dir, force=True)[2]


@pytest.mark.usefixtures("_tensorrt_llm")
def test_another_gpu_or_another_version_than_planned_is_refused(plan: Plan) -> None:
    with pytest.raises(EngineRefusedError, match=r"SM 90 GPU; this machine has NVIDIA L4 \(SM 89\)"):
        inspect_machine(plan, FakeNvml((NvmlGpu("NVIDIA L4", 89, 24 << 30),)))
    older = replace(plan, spec=replace(plan.spec, trtllm_version="1.0.0"))
    with pytest.raises(EngineRefusedError, match=r"for TensorRT-LLM 1.0.0; this machine has 1.2.1"):
        inspect_machine(older, FakeNvml())


def test_a_machine_without_tensorrt_llm_can_not_build() -> None:
    assert not can_build()


@pytest.mark.usefixtures("_tensorrt_llm")
def test_an_engine_with_other_limits_than_asked_for_is_not_kept(
    plan: Plan, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BATCH", "8")
    with pytest.raises(BuildEngineError, match=r"max_batch_size 8, the manifest has 64"):
        run(plan, model_dir)
    assert plan.engine_dir
    assert not plan.engine_dir.exists()


@pytest.mark.usefixtures("_tensorrt_llm")
def test_calibration_data_is_described_without_its_path_and_a_change_of_it_builds_again(
    tmp_path: Path, model_dir: Path
) -> None:
    texts = tmp_path / "our-requests"
    texts.mkdir()
    (texts / "train.jsonl").write_text('{"text": "one"}\n')
    plan = plan_for(model_dir, tmp_path, precision="fp8", calibration=str(texts))
    engine_dir, manifest, _ = run(plan, model_dir)
    assert manifest.gpu
    assert manifest.gpu.calibration == Calibration(
        source="our-requests", samples=512, tokens=512, seed=1234, sha256=manifest.gpu.calibration.sha256
    )
    assert run(plan, model_dir)[2]
    (texts / "train.jsonl").write_text('{"text": "two"}\n')
    assert not run(plan, model_dir)[2]
    assert log_of(engine_dir).count("calibrating on") == 2


@pytest.mark.usefixtures("_tensorrt_llm")
def test_calibration_data_that_is_not_there_is_refused_before_the_work(tmp_path: Path, model_dir: Path) -> None:
    plan = plan_for(model_dir, tmp_path, precision="fp8", calibration="/nowhere/texts")
    with pytest.raises(EngineRefusedError, match=r"No calibration data at '/nowhere/texts'.*train\.jsonl"):
        run(plan, model_dir)
    assert plan.engine_dir
    assert not list(plan.engine_dir.parent.glob("*.log"))


@pytest.mark.usefixtures("_tensorrt_llm")
def test_an_engine_that_does_not_load_is_not_published(
    plan: Plan, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE_FAILS", "1")
    with pytest.raises(BuildEngineError, match=r"no deserializer \(fake\)"):
        run(plan, model_dir, with_smoke_test=True)
    assert plan.engine_dir
    assert not plan.engine_dir.exists()
    _, manifest, _ = run(plan, model_dir)
    assert manifest.gpu
    assert not manifest.gpu.load_tested


@pytest.mark.usefixtures("_tensorrt_llm")
def test_a_machine_with_too_few_gpus_builds_without_loading_and_says_so(
    plan: Plan, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE_FAILS", "1")
    progress = RecordingProgress()
    machine = inspect_machine(plan, FakeNvml((H100,)))
    manifest = run_plan(plan, model_dir, machine, progress).manifest
    assert manifest.gpu
    assert not manifest.gpu.load_tested
    assert "Smoke test skipped: it needs 3 x SM 90; this machine has 1." in progress.notes


@pytest.mark.usefixtures("_tensorrt_llm")
def test_kernel_timings_go_from_one_engine_to_the_next(tmp_path: Path, model_dir: Path) -> None:
    """The stand-in adds a line to what it was given. Another precision of another model: the same GPU is enough."""
    first = plan_for(model_dir, tmp_path, precision="bf16")
    other_model = write_model(tmp_path / "another")
    second = plan_for(other_model, tmp_path, precision="int8-wo")
    run(first, model_dir)
    run(second, other_model)
    assert first.timing_cache == second.timing_cache == tmp_path / "engines/timing-caches/1.2.1-sm90-h100.cache"
    assert first.timing_cache
    assert first.timing_cache.read_text() == "timed\n" * 2
    assert [path.name for path in first.timing_cache.parent.iterdir()] == ["1.2.1-sm90-h100.cache"]


@pytest.mark.usefixtures("_tensorrt_llm")
def test_a_failed_build_leaves_the_shared_timings_as_they_were_and_names_them(
    plan: Plan, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BUILD_FAILS", "1")
    with pytest.raises(BuildEngineError) as without:
        run(plan, model_dir)
    assert "kernel timings" not in str(without.value)
    assert plan.timing_cache
    plan.timing_cache.write_text("timed by others\n")
    with pytest.raises(BuildEngineError, match=r"(?s)out of memory.*started with the kernel timings of .*h100\.cache"):
        run(plan, model_dir)
    assert plan.timing_cache.read_text() == "timed by others\n"
    assert plan.engine_dir
    assert not list(plan.engine_dir.parent.glob(".*timing*"))


def test_builds_at_the_same_time_each_work_on_a_copy_of_their_own(tmp_path: Path) -> None:
    shared, one, other = tmp_path / "caches" / "shared", tmp_path / "one", tmp_path / "other"
    with private_timings(shared, one):
        one.write_text("one")
        with private_timings(shared, other):
            assert not other.exists(), "nothing is shared before it is whole"
            other.write_text("other")
        assert (shared.read_text(), one.read_text()) == ("other", "one")
    assert shared.read_text() == "one"
