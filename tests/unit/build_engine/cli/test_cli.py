"""Exit statuses and messages of the program: 0 done, 1 failed, 2 wrong usage, 3 refused."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from build_engine.cli import app as cli
from build_engine.targets.nvml import NvmlGpu
from build_engine.targets.registry import TARGETS
from tests.fakes.tensorrt_llm_build import FakeNvml
from tests.support.build_engine_program import run_program

DATA = Path(__file__).parents[3] / "data"
LLAMA = str(DATA / "model_configs" / "llama-3.1-8b")
GPT_OSS = str(DATA / "pytorch_model_configs" / "gpt-oss-120b")
QWEN35 = str(DATA / "pytorch_model_configs" / "qwen3.5-27b")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["targets"], 0, ""),
        (["build", "--no-such-option"], 2, "No such option"),
        (["build", "--target", "tpu"], 2, "Unknown target"),
        (["build", "--precision", "int3"], 3, "Choose one of fp16"),
        (["build", "--model", "/nowhere/model.gguf"], 3, "No model file"),
        (["inspect", "/nowhere"], 1, "manifest.json is missing"),
        (["build", "--output", "/proc/engine"], 1, "No such file or directory"),
        (["build", "--target", "h100"], 3, "needs --model"),
        (["build", "--target", "h100", "--model", LLAMA], 3, "needs a machine with TensorRT-LLM 1.2.1"),
        (["build", "--target", "h100", "--model", LLAMA, "--precision", "int3"], 3, "Unknown precision 'int3'"),
        (["build", "--tp", "2"], 3, "does not support the options of GPU engines"),
        (["verify", "/nowhere"], 1, ""),
        (["verify", "/nowhere", "--gate", "taste"], 2, "is not one of"),
        (["fleet", "/nowhere.toml"], 3, "path of a fleet file"),
        (["fleet"], 2, "Missing argument"),
        (["plan", "--model", LLAMA, "--target", "h100"], 0, ""),
        (["plan", "--model", LLAMA, "--target", "RTX PRO 6000 Blackwell"], 0, ""),
        (["plan", "--model", LLAMA, "--target", "a100", "--precision", "fp8"], 3, ""),
        (["plan", "--model", LLAMA, "--target", "h100", "--precision", "int3"], 2, "is not one of"),
        (["plan", "--model", LLAMA, "--target", "h100", "--tp", "0"], 2, "Invalid value"),
        (["plan", "--model", LLAMA], 2, "Missing option '--target'"),
        (["plan", "--model", LLAMA, "--target", "cpu"], 3, "needs no plan"),
        (["plan", "--model", LLAMA, "--target", "tpu"], 2, "Unknown target"),
        (["plan", "--model", "/nowhere", "--target", "h100"], 3, "No model directory /nowhere"),
        (["plan", "--model", GPT_OSS, "--target", "h100"], 0, ""),
        (["plan", "--model", GPT_OSS, "--target", "a100"], 3, ""),
        (["plan", "--model", GPT_OSS, "--target", "h100", "--runtime", "engine"], 3, ""),
        (["plan", "--model", GPT_OSS, "--target", "h100", "--runtime", "triton"], 2, "is not one of"),
        (["plan", "--model", GPT_OSS, "--target", "cpu"], 3, "needs no plan"),
        (["plan", "--model", LLAMA, "--target", "h100", "--runtime", "pytorch"], 0, ""),
        (
            ["plan", "--model", LLAMA, "--target", "h100", "--runtime", "pytorch", "--precision", "int8-sq"],
            3,
            "The PyTorch runtime loads no int8-sq weights",
        ),
        (
            ["plan", "--model", LLAMA, "--target", "h100", "--runtime", "engine", "--ep", "2"],
            3,
            "--ep 2 is an option of",
        ),
    ],
)
def test_exit_status_and_message_of_each_outcome(
    capfd: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    assert run_program(*arguments) == status
    assert message in capfd.readouterr().err


def test_targets_lists_whether_this_machine_can_build(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_program("targets", "--json") == 0
    listed = json.loads(capfd.readouterr().out)
    assert [target["name"] for target in listed] == list(TARGETS)
    assert listed[0]["works_here"] is True


def test_targets_lists_sm_memory_and_precisions_of_a_gpu(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_program("targets", "--json") == 0
    listed = {target["name"]: target for target in json.loads(capfd.readouterr().out)}
    assert (listed["h100"]["sm"], listed["h100"]["memory_bytes"]) == (90, 80_000_000_000)
    assert listed["h100"]["precisions"][0] == "fp8"
    assert not listed["h100"]["works_here"]
    assert "tensorrt_llm" in listed["h100"]["reason"]


def test_a_plan_as_json_has_the_documented_keys(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_program("plan", "--model", LLAMA, "--target", "h100", "--json") == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["accepted"] is True
    assert plan["refusals"] == []
    assert plan["engine_dir"].startswith(".run/engines/llama-3.1-8b/h100/fp8-tp1pp1/")
    assert [step["name"] for step in plan["steps"]] == ["quantise", "engine", "tokenizer"]
    assert {
        "weights_bytes",
        "kv_cache_bytes_per_token",
        "kv_cache_bytes",
        "activation_bytes",
        "total_bytes",
        "gpu_bytes",
        "largest_batch_that_fits",
    } <= plan["memory"].keys()


@pytest.mark.parametrize(
    "arguments",
    [["--model", LLAMA, "--target", "a100", "--precision", "nvfp4"], ["--model", "/nowhere", "--target", "h100"]],
    ids=["combination", "model"],
)
def test_a_refusal_is_json_too(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run_program("plan", *arguments, "--json") == 3
    plan = json.loads(capfd.readouterr().out)
    assert (plan["accepted"], plan["steps"], plan["engine_dir"]) == (False, [], None)
    assert len(plan["refusals"]) == 1


def test_a_plan_has_its_runtime_and_the_reason_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_program("plan", "--model", LLAMA, "--target", "h100", "--json") == 0
    engine = json.loads(capfd.readouterr().out)
    assert (engine["runtime"], engine["runtime_reason"]) == (
        "engine",
        "TensorRT-LLM 1.2.1 can compile this architecture into an engine.",
    )
    assert run_program("plan", "--model", GPT_OSS, "--target", "h100") == 0
    printed = capfd.readouterr().out
    assert printed.startswith("runtime pytorch: GptOssForCausalLM can't be compiled into an engine;")


def test_a_plan_of_the_pytorch_runtime_has_the_keys_of_an_engines_plan(capfd: pytest.CaptureFixture[str]) -> None:
    plans = []
    for runtime in ("engine", "pytorch"):
        assert run_program("plan", "--model", LLAMA, "--target", "h100", "--runtime", runtime, "--json") == 0
        plans.append(json.loads(capfd.readouterr().out))
    engine, pytorch = plans
    assert engine.keys() <= pytorch.keys()
    assert engine["memory"].keys() <= pytorch["memory"].keys()
    assert (pytorch["runtime"], pytorch["steps"], pytorch["precision"]) == ("pytorch", [], "bf16")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_a_pytorch_plan_fits_the_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """A cell that is cut off ends in an ellipsis."""
    monkeypatch.setenv("COLUMNS", str(width))
    assert run_program("plan", "--model", QWEN35, "--target", "h200", "--tensorrt-llm", "1.3.0") == 0
    table = [line for line in capfd.readouterr().out.splitlines() if line.startswith(("│", "┃"))]
    assert len(table) == 11
    assert max(map(len, table)) <= width
    assert "…" not in "".join(table)


def test_the_command_of_a_pytorch_plan_repeats_its_options(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--tp", "4", "--ep", "2", "--kv-cache-precision", "fp8", "--tensorrt-llm", "1.3.0"]
    assert run_program("plan", "--model", GPT_OSS, "--target", "h100", *options) == 0
    lines = capfd.readouterr().out.splitlines()
    command = next(shlex.split(line) for line in lines if line.startswith("python -m build_engine build"))
    assert all(option in command for option in [*options, "--runtime", "--max-batch-size"])


def test_a_plan_is_for_the_installed_release_unless_another_is_given(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TensorRT-LLM 1.3 builds no engines, so that a machine with it gets the PyTorch runtime."""
    metadata = tmp_path / "tensorrt_llm-1.3.0rc26.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.3.0rc26\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    runtimes = []
    for asked in ([], ["--tensorrt-llm", "1.2.1"]):
        assert run_program("plan", "--model", LLAMA, "--target", "h100", *asked, "--json") == 0
        plan = json.loads(capfd.readouterr().out)
        runtimes.append((plan["runtime"], plan["tensorrt_llm"]))
    assert runtimes == [("pytorch", "1.3.0rc26"), ("engine", "1.2.1")]


def test_commands_are_not_wrapped(capfd: pytest.CaptureFixture[str]) -> None:
    """A line that is cut at the terminal's width can't be copied."""
    assert run_program("plan", "--model", LLAMA, "--target", "h100", "--precision", "bf16", "--root", "a b") == 0
    lines = capfd.readouterr().out.splitlines()
    build = next(shlex.split(line) for line in lines if line.startswith("trtllm-build"))
    assert build[build.index("--output_dir") + 1].startswith("a b/llama-3.1-8b/h100/bf16-tp1pp1/1.2.1-")
    assert build[-2:] == ["--gemm_plugin", "auto"]


def test_auto_plans_for_the_detected_gpu(capfd: pytest.CaptureFixture[str]) -> None:
    nvml = FakeNvml((NvmlGpu("NVIDIA GeForce RTX 4090", 89, 24_564 << 20),))
    assert run_program("plan", "--model", LLAMA, "--target", "auto", "--tp", "2", "--json", nvml=nvml) == 3
    plan = json.loads(capfd.readouterr().out)
    assert plan["target"] == {"name": "geforce-rtx-4090", "sm": 89}
    assert plan["memory"]["gpu_bytes"] == 24_564 << 20
    assert "this machine has 1" in plan["refusals"][0]


def test_a_plan_imports_no_engine_library() -> None:
    libraries = {"tensorrt_llm", "torch", "pynvml", "openvino"}
    code = f"import build_engine.cli.app, sys; print(sorted({libraries} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert run_program("build") == 3
    assert "pip install 'triton-completions[build]'" in capfd.readouterr().err


def test_each_engine_library_is_imported_by_one_module() -> None:
    owners = {
        "gguf": {"gguf_model.py"},
        "openvino": set(),
        "tensorrt_llm": {"trtllm.py"},
    }
    for library, expected in owners.items():
        words = (f"import {library}\n", f"import {library} ", f"from {library} import", f"from {library}.")
        sources = Path(cli.__file__).parents[1].rglob("*.py")
        found = {path.name for path in sources if any(word in path.read_text() for word in words)}
        assert found == expected
