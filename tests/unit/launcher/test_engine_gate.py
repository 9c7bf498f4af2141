"""The engine gate as a program of its own, on a real CPU engine and on directories for TensorRT-LLM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_engine.cpu.build import BuildRequest, build_engine
from build_engine.cpu.default_model import find_model
from build_engine.progress import SilentProgress
from build_engine.targets.registry import find_target
from llm_pipeline.engine_files.manifest import MANIFEST_NAME, EngineManifest, sha256_of
from tests.fakes.gpu_engine import make_gpu_engine
from tests.fakes.model_directory import make_model_directory
from tests.support.tiny_models import TinyModel, write_gguf

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    write_gguf(folder / "tiny.gguf", TinyModel())
    request = BuildRequest(find_model(folder / "tiny.gguf"), find_target("cpu"), "fp16", folder / "engine")
    return build_engine(request, SilentProgress()).engine_dir


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    """A copy of the CPU engine, to be damaged."""
    return Path(shutil.copytree(built, tmp_path / "engine"))


def gate(engine_dir: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the program as the init container does: its settings are the whole environment."""
    inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "launcher.engine_gate"],
        cwd=ROOT,
        env={**inherited, "ENGINE_DIR": str(engine_dir), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refusal(run: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert (run.returncode, run.stdout) == (3, ""), run.stderr
    (line,) = run.stderr.splitlines()
    assert line.startswith("engine gate: refused: ")
    return line


def weights_of(engine: Path) -> Path:
    files = EngineManifest.load(engine).files
    return engine / max(files, key=lambda name: files[name].size_bytes)


# --- The CPU engine --------------------------------------------------------------------------------------------------


def test_a_good_engine_passes_with_one_line(engine: Path) -> None:
    run = gate(engine)
    assert (run.returncode, run.stderr) == (0, "")
    (line,) = run.stdout.splitlines()
    assert line.startswith("engine gate: passed: tiny-test-model, cpu fp16, ")


def test_the_engine_that_make_serve_builds_passes(engine_dir: Path) -> None:
    assert gate(engine_dir, GATE_CHECK="size").returncode == 0


def test_nothing_is_written(engine: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in engine.parent.rglob("*")}

    before = state()
    gate(engine)
    assert state() == before


def test_a_changed_byte_is_refused(engine: Path) -> None:
    weights = weights_of(engine)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    line = refusal(gate(engine))
    assert f"{weights.name} has been changed" in line
    assert gate(engine, GATE_CHECK="size").returncode == 0  # which reads no weights


@pytest.mark.parametrize("check", ["sha256", "size"])
def test_a_truncated_file_is_refused(engine: Path, check: str) -> None:
    weights = weights_of(engine)
    os.truncate(weights, weights.stat().st_size - 1)
    assert f"{weights.name} has " in refusal(gate(engine, GATE_CHECK=check))


def test_a_missing_file_is_refused_and_further_problems_are_counted(engine: Path) -> None:
    weights_of(engine).unlink()
    (engine / "tokenizer.json").unlink()
    assert "is missing (and 1 more problems)" in refusal(gate(engine))


def test_a_file_that_the_manifest_does_not_list_is_refused(engine: Path) -> None:
    """The PyTorch runtime would read some, such as another config of the tokenizer."""
    (engine / "extra.json").write_text("{}")
    assert "extra.json is not part of the engine" in refusal(gate(engine, GATE_CHECK="size"))


def test_a_missing_manifest_is_refused(engine: Path) -> None:
    (engine / MANIFEST_NAME).unlink()
    assert f"{MANIFEST_NAME} is missing" in refusal(gate(engine))


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert f"No engine in {tmp_path / 'nowhere'}" in refusal(gate(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not JSON"),
        ("[]", "can't be read as an engine manifest: the document"),
        ("{}", "can't be read as an engine manifest: target: Field required."),
        (b"\xff\xfe\x00", "is not JSON"),
    ],
)
def test_an_unreadable_manifest_is_refused_in_one_line(engine: Path, content: str | bytes, expected: str) -> None:
    (engine / MANIFEST_NAME).write_bytes(content.encode() if isinstance(content, str) else content)
    assert expected in refusal(gate(engine))


def test_a_manifest_of_another_format_version_is_refused(engine: Path) -> None:
    document = json.loads((engine / MANIFEST_NAME).read_text())
    (engine / MANIFEST_NAME).write_text(json.dumps({**document, "format_version": 2, "new": True}))
    assert "has format version 2; this release reads version 1" in refusal(gate(engine))


def test_a_pinned_manifest_must_be_that_one(engine: Path) -> None:
    digest = sha256_of(engine / MANIFEST_NAME)
    assert gate(engine, GATE_MANIFEST_SHA256=digest).returncode == 0
    assert f"is {digest}, and" in refusal(gate(engine, GATE_MANIFEST_SHA256="0" * 64))


def test_an_engine_for_another_executor_is_refused_before_its_files_are_read(engine: Path) -> None:
    weights_of(engine).unlink()
    assert "Serve it with EXECUTOR=cpu" in refusal(gate(engine, EXECUTOR="tensorrt_llm"))


@pytest.mark.parametrize(
    "variables", [{"GATE_CHECK": "md5"}, {"GATE_MANIFEST_SHA256": "1234"}, {"GPU_COUNT": "0"}], ids=min
)
def test_an_invalid_setting_has_a_status_of_its_own(engine: Path, variables: dict[str, str]) -> None:
    run = gate(engine, **variables)
    assert (run.returncode, run.stdout) == (2, "")
    assert min(variables) in run.stderr


def test_storage_that_fails_has_a_status_that_may_be_retried(engine: Path) -> None:
    """A link to itself stands for it: it fails for root too."""
    (engine / MANIFEST_NAME).unlink()
    (engine / MANIFEST_NAME).symlink_to(MANIFEST_NAME)
    run = gate(engine)
    assert (run.returncode, run.stdout) == (1, "")
    assert "the storage failed" in run.stderr


# --- TensorRT-LLM ----------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """A PYTHONPATH with the metadata of TensorRT-LLM 1.2.1: the gate imports no more than that."""
    metadata = tmp_path / "site" / "tensorrt_llm-1.2.1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.2.1\n")
    return str(tmp_path / "site")


def test_a_compiled_engine_passes_with_its_version_and_number_of_gpus(tmp_path: Path, installed: str) -> None:
    make_gpu_engine(tmp_path / "engine", version="1.2.1", tp=2)
    run = gate(tmp_path / "engine", EXECUTOR="tensorrt_llm", GPU_COUNT="2", PYTHONPATH=installed)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_compiled_engine_of_another_version_is_refused(tmp_path: Path, installed: str) -> None:
    make_gpu_engine(tmp_path / "engine", version="1.1.0")
    line = refusal(gate(tmp_path / "engine", EXECUTOR="tensorrt_llm", PYTHONPATH=installed))
    assert "built with TensorRT-LLM 1.1.0 and this image has 1.2.1" in line


def test_an_engine_for_another_number_of_gpus_is_refused(tmp_path: Path, installed: str) -> None:
    make_gpu_engine(tmp_path / "engine", version="1.2.1", tp=2)
    line = refusal(gate(tmp_path / "engine", EXECUTOR="tensorrt_llm", GPU_COUNT="1", PYTHONPATH=installed))
    assert "is for 2 GPUs; this server has 1 (GPU_COUNT)" in line


def test_the_gpus_of_a_group_of_pods_are_added(tmp_path: Path, installed: str) -> None:
    make_gpu_engine(tmp_path / "engine", version="1.2.1", tp=2)
    variables = {"EXECUTOR": "tensorrt_llm", "GPU_COUNT": "1", "PYTHONPATH": installed}
    assert gate(tmp_path / "engine", LWS_GROUP_SIZE="2", **variables).returncode == 0
    assert "3 have 1 each" in refusal(gate(tmp_path / "engine", LWS_GROUP_SIZE="3", **variables))


def test_a_gpu_engine_without_tensorrt_llm_is_refused(tmp_path: Path) -> None:
    make_gpu_engine(tmp_path / "engine")
    assert "TensorRT-LLM is not installed here" in refusal(gate(tmp_path / "engine", EXECUTOR="tensorrt_llm"))


@pytest.mark.parametrize(("made_for", "status"), [("1.2.1", 0), ("1.2.2", 0), ("1.3.0", 3)])
def test_a_model_directory_needs_a_release_of_its_profile(
    tmp_path: Path, installed: str, made_for: str, status: int
) -> None:
    make_model_directory(tmp_path / "engine", version=made_for, tp=2)
    run = gate(tmp_path / "engine", EXECUTOR="tensorrt_llm_pytorch", GPU_COUNT="2", PYTHONPATH=installed)
    assert run.returncode == status, run.stderr


def test_a_model_directory_whose_links_lead_nowhere_is_refused(tmp_path: Path, installed: str) -> None:
    make_model_directory(tmp_path / "engine", version="1.2.1")
    weights = tmp_path / "engine" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "models" / "model.safetensors")
    line = refusal(gate(tmp_path / "engine", EXECUTOR="tensorrt_llm_pytorch", PYTHONPATH=installed))
    assert "is missing: it links to" in line
