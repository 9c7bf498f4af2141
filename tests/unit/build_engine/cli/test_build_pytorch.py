"""The `build` command for the PyTorch runtime: outcomes, output, and options that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build_engine.targets.nvml import NvmlGpu
from llm_pipeline.engine_files.manifest import EngineManifest
from tests.fakes.tensorrt_llm_build import FakeNvml
from tests.support.build_engine_program import run_program
from tests.support.pytorch_builds import write_model

H200 = NvmlGpu("NVIDIA H200", 90, 143_771 << 20)
PYTORCH = ("--runtime", "pytorch")


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models" / "tiny-llama")


@pytest.fixture
def build(model_dir: Path, tmp_path: Path) -> Any:
    def run(*options: str | Path, target: str = "h100", model: Path = model_dir) -> int:
        root = tmp_path / "engines"
        nvml = FakeNvml((H200, H200))
        return run_program("build", "--target", target, "--model", model, "--root", root, *options, nvml=nvml)

    return run


def test_the_directory_is_printed_and_found_again(
    build: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert build(*PYTORCH) == 0
    shown = capfd.readouterr().out
    assert "Model directory tiny-llama (h100, bf16, " in shown
    assert " in links) is ready:" in shown
    engine_dir = Path(shown.splitlines()[-1].strip())
    assert engine_dir.parent == tmp_path / "engines/tiny-llama/h100/bf16-tp1pp1-pytorch"
    assert EngineManifest.load(engine_dir).runtime == "pytorch"
    assert build(*PYTORCH) == 0
    assert "is valid already, nothing to build" in capfd.readouterr().out
    assert build(*PYTORCH, "--copy") == 0
    assert " in copies) is ready:" in capfd.readouterr().out


def test_auto_builds_for_the_gpus_of_this_machine(build: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert build(*PYTORCH, "--tp", "2", "--max-seq-len", "64", "--json", target="auto") == 0
    result = json.loads(capfd.readouterr().out)
    manifest = result["manifest"]
    assert (result["reused"], result["runtime"], manifest["target"]) == (False, "pytorch", "h200")
    assert (manifest["pytorch"]["tp"], manifest["pytorch"]["sm"], manifest["limits"]["context_length"]) == (2, 90, 64)


def test_auto_refuses_more_gpus_than_this_machine_has(build: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert build(*PYTORCH, "--tp", "4", target="auto") == 3
    assert "needs 4 GPUs; this machine has 2" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tensorrt-llm", "1.3.0"), "Runtime pytorch: TensorRT-LLM 1.3.0 builds no engines"),
        (("--ep", "1"), "Runtime pytorch: The weights are quantized with FP8"),
    ],
    ids=["release", "quantized"],
)
def test_the_reason_of_an_automatic_choice_is_shown(
    build: Any, model_dir: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    if "FP8" in words:
        (model_dir / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert build(*options) == 0
    assert words in capfd.readouterr().err


def test_a_quantization_that_the_target_does_not_compute_is_refused(
    build: Any, model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (model_dir / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    assert build(*PYTORCH) == 3
    assert "nvfp4 weights run on SM 100, 103, 120, 121; h100 is SM 90" in capfd.readouterr().out
    assert not (tmp_path / "engines").exists()
    assert build(*PYTORCH, target="b200") == 0


def test_a_refusal_is_json_too(build: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert build(*PYTORCH, "--tp", "3", "--json") == 3
    plan = json.loads(capfd.readouterr().out)
    assert (plan["accepted"], plan["runtime"], plan["engine_dir"]) == (False, "pytorch", None)
    assert "4 attention heads" in plan["refusals"][0]


def test_an_incomplete_model_is_refused_with_the_remedy(
    build: Any, model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (model_dir / "tokenizer.json").rename(model_dir / "tokenizer.model")
    assert build(*PYTORCH) == 3
    shown = capfd.readouterr().err
    assert "only tokenizer.model" in shown
    assert "use_fast=True" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--copy", "--runtime", "engine", "--precision", "bf16"), "--copy applies to the PyTorch runtime"),
        (("--ep", "2", "--runtime", "engine"), "--ep 2 is an option of the PyTorch runtime"),
        ((*PYTORCH, "--output", "somewhere"), "is built below --root"),
    ],
    ids=["copy", "ep", "output"],
)
def test_options_that_do_not_fit_the_runtime_are_refused(
    build: Any, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert build(*arguments) == 3
    assert words in capfd.readouterr().err


@pytest.mark.parametrize("options", [PYTORCH, ("--copy",)], ids=["runtime", "copy"])
def test_target_cpu_does_not_take_them(options: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert run_program("build", *options) == 3
    assert "does not support the options of GPU engines" in capfd.readouterr().err


def test_an_unknown_runtime_is_wrong_usage(build: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert build("--runtime", "torch") == 2
    assert "is not one of" in capfd.readouterr().err
