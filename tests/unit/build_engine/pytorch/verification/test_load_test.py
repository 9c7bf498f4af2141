"""Loading a model directory before it is published, on the stand-in for the LLM API. Not run on TensorRT-LLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from build_engine.artifact.file_checks import file_problems
from build_engine.artifact.result import BuildResult
from build_engine.errors import BuildEngineError
from build_engine.pytorch.building.run import BuildOptions, build_model
from build_engine.pytorch.verification.load_test import load_test
from build_engine.targets.nvml import NvmlGpu
from llm_pipeline.engine_files.manifest import EngineManifest
from tests.fakes.tensorrt_llm_build import H100, FakeNvml
from tests.support.build_engine_program import RecordingProgress
from tests.support.hugging_face_models import VOCAB_SIZE
from tests.support.pytorch_builds import InstallLlmApi, plan_for, write_model

L4 = NvmlGpu("NVIDIA L4", 89, 24 << 30)
EVERY_PROMPT = {"prompt_ids": [], "is_prefix": True}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-llama")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "engines"


def build(
    model_dir: Path, root: Path, progress: RecordingProgress, gpus: Sequence[NvmlGpu] = (H100,), tp: int = 1
) -> BuildResult:
    return build_model(plan_for(model_dir, root, tp=tp), FakeNvml(tuple(gpus)), progress)


def is_load_tested(result: BuildResult) -> bool:
    model = EngineManifest.load(result.engine_dir).pytorch
    return model is not None and model.load_tested


@pytest.mark.parametrize("version", ["1.2.1", "1.3.0"])
def test_a_model_that_generates_is_published_as_tested(
    model_dir: Path, root: Path, install_llm_api: InstallLlmApi, version: str
) -> None:
    install_llm_api(version=version, sms=[90, 90])
    plan = plan_for(model_dir, root, tp=2, tensorrt_llm=version)
    result = build_model(plan, FakeNvml((H100, H100)), RecordingProgress())
    assert is_load_tested(result)
    check = load_test(result.engine_dir, result.manifest)
    assert check.detail == "128 tokens for 8 prompts"


def test_prompts_may_be_longer_than_a_step(model_dir: Path, root: Path, install_llm_api: InstallLlmApi) -> None:
    install_llm_api()
    plan = plan_for(model_dir, root, max_num_tokens=8)
    assert is_load_tested(build_model(plan, FakeNvml((H100,)), RecordingProgress()))


@pytest.mark.parametrize(
    ("version", "gpus", "tp", "words"),
    [
        ("1.3.0", [H100], 1, "The plan is for TensorRT-LLM 1.2.1; this machine has 1.3.0."),
        ("1.2.1", [H100], 2, "Loading needs 2 x SM 90; this machine has 1 x SM 90."),
        ("1.2.1", [L4], 1, "Loading needs 1 x SM 90; this machine has 0 x SM 90."),
    ],
    ids=["version", "gpus", "sm"],
)
def test_another_machine_builds_without_the_test_and_says_why(
    model_dir: Path, root: Path, install_llm_api: InstallLlmApi, version: str, gpus: list[NvmlGpu], tp: int, words: str
) -> None:
    install_llm_api(version=version)
    progress = RecordingProgress()
    assert not is_load_tested(build(model_dir, root, progress, gpus, tp))
    assert progress.notes == [f"Load test skipped. {words}"]


def test_a_machine_without_tensorrt_llm_builds_without_the_test(model_dir: Path, root: Path) -> None:
    progress = RecordingProgress()
    assert not is_load_tested(build(model_dir, root, progress))
    assert progress.notes == [
        "Load test skipped. TensorRT-LLM is not installed. Loading needs 1 x SM 90 and TensorRT-LLM 1.2.1."
    ]


def test_a_directory_that_another_machine_has_built_is_tested_on_its_own(
    model_dir: Path, root: Path, install_llm_api: InstallLlmApi
) -> None:
    """As in a fleet over a shared disk, whose first run may be on any machine."""
    first = build(model_dir, root, RecordingProgress())
    install_llm_api()
    progress = RecordingProgress()
    again = build(model_dir, root, progress)
    assert (again.reused, is_load_tested(again)) == (True, True)
    assert progress.notes == ["It was built without a load test, which this machine can run."]
    assert first.engine_dir == again.engine_dir
    assert file_problems(again.engine_dir, again.manifest) == []
    install_llm_api(sms=[])  # a further test would fail
    assert is_load_tested(build(model_dir, root, RecordingProgress()))


def test_a_directory_that_fails_its_later_test_stays_untested(
    model_dir: Path, root: Path, install_llm_api: InstallLlmApi
) -> None:
    first = build(model_dir, root, RecordingProgress())
    install_llm_api(sms=[])
    with pytest.raises(BuildEngineError, match="Only 0 GPUs are available"):
        build(model_dir, root, RecordingProgress())
    assert not is_load_tested(first)
    assert file_problems(first.engine_dir, first.manifest) == []


def test_the_test_can_be_left_out(model_dir: Path, root: Path, install_llm_api: InstallLlmApi) -> None:
    install_llm_api(sms=[])  # loading would fail
    progress = RecordingProgress()
    options = BuildOptions(with_load_test=False)
    assert not is_load_tested(build_model(plan_for(model_dir, root), FakeNvml((H100,)), progress, options))
    assert progress.notes == []


def test_a_model_that_does_not_load_is_not_published(
    model_dir: Path, root: Path, install_llm_api: InstallLlmApi
) -> None:
    install_llm_api(sms=[])
    with pytest.raises(BuildEngineError, match="Only 0 GPUs are available, but 1 are required"):
        build(model_dir, root, RecordingProgress())
    assert not list(root.rglob("manifest.json"))


def test_a_model_whose_requests_fail_is_not_published(
    model_dir: Path, root: Path, install_llm_api: InstallLlmApi
) -> None:
    install_llm_api(rules=[{**EVERY_PROMPT, "error": "CUDA error: an illegal memory access (scripted)"}])
    with pytest.raises(BuildEngineError, match=r"an illegal memory access \(scripted\)"):
        build(model_dir, root, RecordingProgress())
    assert not list(root.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("token_ids", "words"),
    [([5] * 3, "24 tokens for 8 prompts"), ([VOCAB_SIZE] * 16, "128 tokens for 8 prompts, some out of range")],
    ids=["too-few", "out-of-range"],
)
def test_a_model_with_invalid_output_is_not_published(
    model_dir: Path, root: Path, install_llm_api: InstallLlmApi, token_ids: list[int], words: str
) -> None:
    install_llm_api(rules=[{**EVERY_PROMPT, "token_ids": token_ids, "finish": "LENGTH"}])
    with pytest.raises(BuildEngineError, match=rf"its output is invalid: {words}\. Do not serve it"):
        build(model_dir, root, RecordingProgress())
    assert not list(root.rglob("manifest.json"))


def test_a_model_that_hangs_fails_after_the_time_limit(
    model_dir: Path, root: Path, install_llm_api: InstallLlmApi
) -> None:
    result = build_model(plan_for(model_dir, root), FakeNvml(), RecordingProgress(), BuildOptions(with_load_test=False))
    install_llm_api(rules=[{**EVERY_PROMPT, "stalls": True}])
    with pytest.raises(BuildEngineError, match=r"did not finish with .* within 4 s"):
        load_test(result.engine_dir, result.manifest, timeout_s=4)
