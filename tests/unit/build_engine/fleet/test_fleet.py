"""The `fleet` command: real CPU builds of tiny models, and GPU builds with a stand-in for TensorRT-LLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.engine_files.manifest import EngineManifest
from tests.fakes.tensorrt_llm_build import FakeNvml, uninstall, write_model
from tests.support.build_engine_program import run_program
from tests.support.tiny_models import TinyModel, write_gguf

CPU = """
root = "engines"
[[engines]]
model = "tiny.gguf"
target = "cpu"
[[engines]]
model = "two.gguf"
target = "cpu"
name = "two"
"""
GPU = """
[[engines]]
model = "smollm2"
target = "h100"
precision = "bf16"
tp = 3
[[engines]]
model = "smollm2"
target = "a100"
precision = "fp8"
[[engines]]
model = "smollm2"
target = "l4"
precision = "bf16"
"""
Fleet = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def fleet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Fleet:
    def run(text: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
        (tmp_path / "fleet.toml").write_text(text)
        status = run_program("fleet", tmp_path / "fleet.toml", *options, "--json", nvml=FakeNvml())
        return status, json.loads(capfd.readouterr().out)["engines"]

    return run


@pytest.fixture
def models(tmp_path: Path, tiny_gguf: Path) -> Path:
    shutil.copy(tiny_gguf, tmp_path / "tiny.gguf")
    write_gguf(tmp_path / "two.gguf", TinyModel(seed=11))
    write_model(tmp_path / "smollm2")
    return tmp_path


def outcomes(engines: list[dict[str, Any]]) -> list[str]:
    return [engine["outcome"] for engine in engines]


@pytest.mark.usefixtures("_tensorrt_llm")
def test_a_fleet_builds_missing_engines_reuses_valid_ones_and_refuses_the_rest(
    models: Path, tiny_engine: Path, fleet: Fleet
) -> None:
    """One of two CPU engines exists already; one of three GPU engines can be built here."""
    shutil.copytree(tiny_engine, models / "engines" / "tiny-test-model" / "cpu-fp16")
    status, engines = fleet(CPU + GPU)
    assert outcomes(engines) == ["reused", "built", "built", "refused", "other machine"]
    assert status == 3
    two = EngineManifest.load(models / "engines" / "two" / "cpu-fp16")
    assert (two.target, two.model_name) == ("cpu", "two")
    gpu = EngineManifest.load(Path(engines[2]["engine_dir"]))
    assert gpu.gpu
    assert (gpu.target, gpu.gpu.tp, gpu.gpu.sm) == ("h100", 3, 90)
    assert "fp8 needs SM 89" in engines[3]["reasons"][0]
    assert "this machine has NVIDIA H100" in engines[4]["reasons"][0]
    assert engines[1]["size_bytes"] == sum(file.size_bytes for file in two.files.values())

    status, engines = fleet(CPU)
    assert (status, outcomes(engines)) == (0, ["reused", "reused"])


@pytest.mark.usefixtures("_tensorrt_llm")
def test_a_valid_gpu_engine_is_reused_on_a_machine_without_tensorrt_llm(
    models: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = '[[engines]]\nmodel = "smollm2"\ntarget = "h100"\nprecision = "bf16"\n'
    both = f'root = "engines"\n{entry}{entry}max_seq_len = 1024\n'
    status, engines = fleet(f'root = "engines"\n{entry}')
    assert (status, outcomes(engines)) == (0, ["built"])
    uninstall(models, monkeypatch)
    status, engines = fleet(both)
    assert (status, outcomes(engines)) == (3, ["reused", "other machine"])
    assert "Run the same file on such a machine" in engines[1]["reasons"][0]


@pytest.mark.usefixtures("_tensorrt_llm")
@pytest.mark.parametrize(
    ("options", "expected"),
    [([], ["built", "failed", "not started"]), (["--continue-on-error"], ["built", "failed", "built"])],
    ids=["stops", "goes-on"],
)
def test_a_failure_stops_the_fleet_unless_continue_on_error_and_the_next_run_resumes(
    models: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: list[str]
) -> None:
    text = (
        'root = "engines"\n[[engines]]\nmodel = "smollm2"\ntarget = "h100"\nprecision = ["bf16", "fp16", "int8-wo"]\n'
    )
    monkeypatch.setenv("FAKE_BUILD_FAILS", "fp16")
    status, engines = fleet(text, *options)
    assert (status, outcomes(engines)) == (1, expected)
    assert "out of memory (fake)" in engines[1]["reasons"][0]
    monkeypatch.delenv("FAKE_BUILD_FAILS")
    status, engines = fleet(text)
    assert status == 0
    assert outcomes(engines) == ["reused" if outcome == "built" else "built" for outcome in expected]


@pytest.mark.usefixtures("models")
def test_a_dry_run_builds_nothing(tmp_path: Path, fleet: Fleet) -> None:
    status, engines = fleet(CPU + GPU, "--dry-run")
    assert outcomes(engines) == ["would build", "would build", "would build", "refused", "would build"]
    assert status == 3
    assert not (tmp_path / "engines").exists()
    assert fleet(CPU, "--dry-run")[0] == 0


@pytest.mark.usefixtures("models")
def test_refusals_are_printed_before_the_first_build(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    late = '[[engines]]\nmodel = "two.gguf"\ntarget = "cpu"\nname = "two"\nmax_seq_len = 1000\n'
    (tmp_path / "fleet.toml").write_text('root = "engines"\n[[engines]]\nmodel = "tiny.gguf"\ntarget = "cpu"\n' + late)
    run_program("fleet", tmp_path / "fleet.toml")
    shown = capfd.readouterr()
    assert shown.err.index("refused: two cpu len1000: Context length 1000") < shown.err.index("1 of 2: tiny cpu")
    assert "1 built, 1 refused" in shown.out
    assert "run the same command again" not in shown.out


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('model = "nowhere.gguf"\ntarget = "cpu"', "No model file"),
        ('model = "tiny.gguf"\ntarget = "cpu"\nprecision = "int4-wo"', "Choose one of fp16"),
        ('model = "nowhere"\ntarget = "h100"', "No model directory"),
        ('model = "tiny.gguf"\ntarget = "h100"', "Use a Hugging Face model directory"),
        ('model = "smollm2"\ntarget = "h100"\ntp = 2', "9 attention heads"),
        ('model = "fleet.toml"\ntarget = "cpu"', "fleet.toml"),
    ],
    ids=["no-file", "precision", "no-directory", "kind", "tp", "no-gguf"],
)
def test_an_entry_that_cannot_be_built_is_refused_with_the_reason(fleet: Fleet, entry: str, words: str) -> None:
    status, engines = fleet(f'root = "engines"\n[[engines]]\n{entry}\n', "--dry-run")
    assert (status, outcomes(engines)) == (3, ["refused"])
    assert words in engines[0]["reasons"][0]


@pytest.mark.usefixtures("models")
def test_the_second_of_two_engines_with_one_directory_is_refused(fleet: Fleet) -> None:
    entry = '[[engines]]\nmodel = "tiny.gguf"\ntarget = "cpu"\n'
    _, engines = fleet(f'root = "engines"\n{entry}{entry}', "--dry-run")
    assert outcomes(engines) == ["would build", "refused"]
    assert "directory is that of tiny cpu (engines 1)" in engines[1]["reasons"][0]
