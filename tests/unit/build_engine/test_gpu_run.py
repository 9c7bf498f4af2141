"""The step runner with stand-ins: a trtllm-build script on PATH, and a tensorrt_llm package on PYTHONPATH.

What is shown is ours: order, log, going on after a failure, and an engine that appears whole or not at all.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from plan_requests import CONFIGS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.gpu.gpus import GPUS
from build_engine.gpu.model_config import read_model_config
from build_engine.gpu.nvml import NvmlGpu
from build_engine.gpu.plan import Plan, PlanRequest, make_plan
from build_engine.gpu.run import can_build, inspect_machine, run_plan
from build_engine.progress import SilentProgress
from build_engine.verify import file_problems, verify_engine
from llm_pipeline.engine_manifest import EngineManifest

H100 = NvmlGpu("NVIDIA H100 80GB HBM3", 90, 81_559 << 20)
BUILDER = """#!/usr/bin/env python3
import json, os, pathlib, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if os.environ.get("FAKE_BUILD_FAILS"):
    sys.exit("out of memory, says the fake")
ranks = len(list(pathlib.Path(options["--checkpoint_dir"]).glob("rank*.safetensors")))
engine = pathlib.Path(options["--output_dir"])
engine.mkdir(parents=True, exist_ok=True)
for rank in range(ranks):
    (engine / f"rank{rank}.engine").write_text(f"engine {rank}")
(engine / "config.json").write_text(json.dumps({"version": "1.2.1"}))
print(f"built {ranks} ranks")
"""
UPSTREAM = {
    "tensorrt/__init__.py": '__version__ = "10.14.1.48"\n',
    "tensorrt_llm/__init__.py": """
import pathlib
__version__ = "1.2.1"
print("[TensorRT-LLM] a banner")
def Mapping(**keywords): return keywords
class Model:
    def __init__(self, rank): self.rank = rank
    def save_checkpoint(self, output, save_config=True):
        (pathlib.Path(output) / f"rank{self.rank}.safetensors").write_text("weights")
class AutoModelForCausalLM:
    @staticmethod
    def from_hugging_face(path, mapping, **keywords):
        print("converting rank", mapping["rank"])
        return Model(mapping["rank"])
""",
    "tensorrt_llm/llmapi.py": "def QuantConfig(**keywords): return keywords\n",
    "tensorrt_llm/quantization.py": "QuantAlgo = {}\n",
}


@dataclass(frozen=True)
class Machine:
    """A driver that has these GPUs."""

    found: tuple[NvmlGpu, ...] = (H100,)

    def gpus(self) -> list[NvmlGpu]:
        return list(self.found)

    def driver_version(self) -> str:
        return "590.44.01"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "smollm2"
    directory.mkdir()
    config = json.loads((CONFIGS / "smollm2-135m" / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"bos_token_id": 1, "eos_token_id": 2}))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    (directory / "model.safetensors").write_text("weights")
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def plan(tmp_path: Path, model_dir: Path) -> Plan:
    request = PlanRequest(
        read_model_config(model_dir), model_dir, GPUS["h100"], precision="bf16", tp=3, root=tmp_path / "engines"
    )
    return make_plan(request)


@pytest.fixture
def _tensorrt_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in UPSTREAM.items():
        path = tmp_path / "upstream" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    script = tmp_path / "bin" / "trtllm-build"
    script.parent.mkdir()
    script.write_text(BUILDER)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "upstream"))


def run(plan: Plan, model_dir: Path, force: bool = False) -> tuple[Path, EngineManifest, bool]:
    result = run_plan(plan, model_dir, inspect_machine(plan, Machine()), SilentProgress(), force)
    return result.engine_dir, result.manifest, result.reused


def log_of(engine_dir: Path) -> str:
    return engine_dir.with_name(f"{engine_dir.name}.log").read_text()


@pytest.mark.usefixtures("_tensorrt_llm")
def test_an_engine_is_built_step_by_step_and_described(plan: Plan, model_dir: Path) -> None:
    engine_dir, manifest, reused = run(plan, model_dir)
    assert engine_dir == plan.engine_dir
    assert not reused
    assert set(manifest.files) == {
        *("build.json", "config.json", "tokenizer.json"),
        *(f"rank{rank}.engine" for rank in range(3)),
    }
    assert file_problems(engine_dir, manifest) == []
    assert manifest == EngineManifest.load(engine_dir)
    assert manifest.tools["tensorrt_llm"] == "1.2.1"
    assert manifest.tools["nvidia-driver"] == "590.44.01"
    assert (manifest.tokens.bos, manifest.tokens.eos, manifest.limits.context_length) == (1, [2, 0], 8192)
    machine = json.loads((engine_dir / "build.json").read_text())["machine"]
    assert (machine["gpu_name"], machine["sm"]) == ("NVIDIA H100 80GB HBM3", 90)


@pytest.mark.usefixtures("_tensorrt_llm")
def test_verify_checks_the_files_and_does_not_load_it(plan: Plan, model_dir: Path) -> None:
    engine_dir, _, _ = run(plan, model_dir)
    names = {
        check.name for check in verify_engine(engine_dir, SilentProgress()) if check.name != "tokenizer round trip"
    }
    assert {"manifest.json", "rank2.engine", "tokenizer size"} <= names
    assert "generates" not in names


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
    with pytest.raises(BuildEngineError, match=r"(?s)Step engine failed \(status 1\).*out of memory, says the fake"):
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
    with pytest.raises(EngineRefusedError, match=r"SM 90 GPU, this machine has NVIDIA L4 \(SM 89\)"):
        inspect_machine(plan, Machine((NvmlGpu("NVIDIA L4", 89, 24 << 30),)))
    older = replace(plan, combination=replace(plan.combination, trtllm_version="1.0.0"))
    with pytest.raises(EngineRefusedError, match=r"for TensorRT-LLM 1.0.0, this machine has 1.2.1"):
        inspect_machine(older, Machine())


def test_a_machine_without_tensorrt_llm_can_not_build() -> None:
    assert not can_build()
