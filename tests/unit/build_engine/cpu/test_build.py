from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from build_engine.artifact.engine_dir import build_lock, new_engine
from build_engine.artifact.file_checks import file_problems
from build_engine.artifact.result import BuildResult
from build_engine.cpu.greedy import GreedyEngine
from build_engine.errors import BuildEngineError, EngineBusyError, EngineRefusedError
from build_engine.progress import SilentProgress
from build_engine.verification.verify import verify_engine
from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError
from tests.support.tiny_models import TOKENS, TinyModel, numpy_greedy, write_gguf

REPOSITORY = Path(__file__).parents[4]
Build = Callable[..., BuildResult]
FILES = ["manifest.json", "model.safetensors", "tokenizer.json"]


@dataclass(frozen=True)
class FixedResources:
    disk_bytes: int = 1 << 40
    memory_bytes: int = 1 << 40

    def free_disk_bytes(self, directory: Path) -> int:
        return self.disk_bytes

    def available_memory_bytes(self) -> int | None:
        return self.memory_bytes


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    ("model", "quantization"),
    [
        (TinyModel(), "Q8_0"),
        (TinyModel(tied=False), "F32"),
        (TinyModel(arch="qwen2", pre="qwen2"), "Q8_0"),
        (TinyModel(arch="qwen3", pre="qwen2"), "Q8_0"),
    ],
    ids=["llama-Q8_0", "llama-untied-F32", "qwen2", "qwen3"],
)
def test_an_engine_makes_the_tokens_of_a_plain_numpy_model(
    tmp_path: Path, build: Build, model: TinyModel, quantization: str
) -> None:
    weights = write_gguf(tmp_path / "m.gguf", model, quantization)
    result = build(tmp_path / "m.gguf", tmp_path / "engine")
    prompt = Tokenizer.from_file(str(result.engine_dir / "tokenizer.json")).encode("hello world").ids
    assert GreedyEngine.load(result.engine_dir).generate(prompt, 12) == numpy_greedy(model, weights, prompt, 12)


def test_an_int8_engine_tells_how_far_it_is_from_fp16(tmp_path: Path, build: Build, tiny_gguf: Path) -> None:
    result = build(tiny_gguf, tmp_path / "engine", "int8")
    assert result.manifest.precision == "int8"
    drift = EngineManifest.load(result.engine_dir).drift
    assert drift
    assert drift.positions > 100
    assert 0.85 < drift.top_token_agreement <= 1
    assert 0 < drift.mean_kl_divergence < 0.05
    assert drift.perplexity_ratio == pytest.approx(1, abs=0.05)
    checks = {check.name: check for check in verify_engine(result.engine_dir, SilentProgress())}
    assert checks["drift"].detail.startswith(f"{drift.top_token_agreement:.1%} of {drift.positions} top tokens")
    assert not any(check.failed for check in checks.values())


def test_an_fp16_engine_has_no_drift(tiny_engine: Path) -> None:
    assert EngineManifest.load(tiny_engine).drift is None


def test_the_manifest_tells_what_the_model_takes(tiny_engine: Path) -> None:
    manifest = EngineManifest.load(tiny_engine)
    assert names(tiny_engine) == FILES
    assert sorted(manifest.files) == [name for name in FILES if name != "manifest.json"]
    assert (manifest.model_name, manifest.target, manifest.precision) == ("tiny-test-model", "cpu", "fp16")
    assert (manifest.limits.context_length, manifest.limits.vocab_size) == (128, len(TOKENS))
    assert (manifest.tokens.bos, manifest.tokens.eos, manifest.tokens.add_bos) == (1, [2], False)
    assert manifest.source.name == "tiny.gguf"


def test_no_file_holds_a_path_of_this_machine(tiny_engine: Path, tiny_gguf: Path) -> None:
    for name in FILES:
        content = (tiny_engine / name).read_bytes()
        for path in (tiny_engine.parent, tiny_gguf.parent, REPOSITORY, Path(sys.prefix)):
            assert str(path).encode() not in content


def test_the_same_model_gives_the_same_files(tmp_path: Path, build: Build, tiny_gguf: Path, tiny_engine: Path) -> None:
    again = build(tiny_gguf, tmp_path / "elsewhere" / "again").manifest
    first = EngineManifest.load(tiny_engine)
    assert again.model_copy(update={"created": first.created}) == first


def test_an_existing_good_engine_is_kept(build: Build, tiny_gguf: Path, tiny_engine: Path) -> None:
    before = (tiny_engine / "manifest.json").stat().st_mtime_ns
    result = build(tiny_gguf, tiny_engine)
    assert result.reused
    assert (tiny_engine / "manifest.json").stat().st_mtime_ns == before


def test_a_damaged_engine_is_built_again(tmp_path: Path, build: Build, tiny_gguf: Path, tiny_engine: Path) -> None:
    shutil.copytree(tiny_engine, tmp_path / "engine")
    (tmp_path / "engine" / "tokenizer.json").write_text("{}")
    result = build(tiny_gguf, tmp_path / "engine")
    assert not result.reused
    assert result.manifest.files == EngineManifest.load(tiny_engine).files
    assert names(tmp_path) == [".engine.lock", "engine"]


def test_an_engine_of_another_model_is_not_replaced(tmp_path: Path, build: Build, tiny_engine: Path) -> None:
    write_gguf(tmp_path / "other.gguf", TinyModel(seed=8))
    with pytest.raises(EngineRefusedError, match=r"engine of another model \(tiny\.gguf\)"):
        build(tmp_path / "other.gguf", tiny_engine)


@pytest.mark.parametrize("force", [False, True])
def test_a_directory_with_other_files_is_never_replaced(
    tmp_path: Path, build: Build, tiny_gguf: Path, force: bool
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(EngineRefusedError, match=r"such as thesis\.tex"):
        build(tiny_gguf, tmp_path, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_context_longer_than_trained_is_refused(tmp_path: Path, build: Build, tiny_gguf: Path) -> None:
    with pytest.raises(EngineRefusedError, match="2 to 128 tokens"):
        build(tiny_gguf, tmp_path / "engine", context_length=129)


@pytest.mark.parametrize("short", ["disk space", "memory"])
def test_too_small_a_machine_is_refused_before_the_work(
    tmp_path: Path, build: Build, tiny_gguf: Path, short: str
) -> None:
    resources = FixedResources(disk_bytes=1) if short == "disk space" else FixedResources(memory_bytes=1)
    with pytest.raises(EngineRefusedError, match=f"Not enough {short}"):
        build(tiny_gguf, tmp_path / "engine", resources=resources)
    assert names(tmp_path) == [".engine.lock"]


def test_a_build_killed_midway_leaves_nothing_that_loads_and_the_next_succeeds(
    tmp_path: Path, build: Build, tiny_gguf: Path
) -> None:
    engine = tmp_path / "engine"
    command = [sys.executable, "-m", "build_engine", "build", "--model", str(tiny_gguf), "--output", str(engine)]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        assert run.stderr
        assert any("dequantize" in line for line in run.stderr)  # what comes next writes the weights
        run.send_signal(signal.SIGKILL)

    with pytest.raises(ManifestError):
        EngineManifest.load(engine)
    leftovers = [path for path in tmp_path.iterdir() if ".building-" in path.name]
    assert leftovers
    assert not any((path / "manifest.json").exists() for path in leftovers)

    assert not build(tiny_gguf, engine).reused
    assert names(tmp_path) == [".engine.lock", "engine"]


def test_two_builds_at_once_give_one_good_engine(tmp_path: Path, tiny_gguf: Path) -> None:
    command = [sys.executable, "-m", "build_engine", "build", "--model", str(tiny_gguf), "--json"]
    command += ["--output", str(tmp_path / "engine")]
    runs = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    documents = [json.loads(run.communicate()[0]) for run in runs]
    assert sorted(document["reused"] for document in documents) == [False, True]
    assert documents[0]["manifest"] == documents[1]["manifest"]
    assert not file_problems(tmp_path / "engine", EngineManifest.load(tmp_path / "engine"))
    assert names(tmp_path) == [".engine.lock", "engine"]


def test_a_second_build_waits_and_gives_up_at_its_limit(tmp_path: Path, build: Build, tiny_gguf: Path) -> None:
    with build_lock(tmp_path / "engine", lambda: None), pytest.raises(EngineBusyError, match="Another build"):
        build(tiny_gguf, tmp_path / "engine", lock_wait_s=0.0)


def test_an_engine_caught_between_two_renames_returns(tmp_path: Path) -> None:
    replaced = tmp_path / ".engine.replaced-1"
    replaced.mkdir()
    (replaced / "manifest.json").write_text("{}")
    with build_lock(tmp_path / "engine", lambda: None):
        assert names(tmp_path / "engine") == ["manifest.json"]


def test_a_failed_build_leaves_the_old_engine(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "old").touch()

    def fail_half_way() -> None:
        with new_engine(engine) as building:
            (building / "new").touch()
            raise BuildEngineError("half way")

    with pytest.raises(BuildEngineError, match="half way"):
        fail_half_way()
    assert names(tmp_path) == ["engine"]
    assert names(engine) == ["old"]


def test_an_engine_of_an_earlier_version_is_replaced(
    tmp_path: Path, build: Build, tiny_gguf: Path, tiny_engine: Path
) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(tiny_engine, engine)
    (engine / "model.safetensors").rename(engine / "openvino_model.bin")
    (engine / "openvino_model.xml").write_text("<net/>")
    assert not build(tiny_gguf, engine).reused
    assert names(engine) == FILES


def test_an_engine_with_broken_weights_is_not_published(tmp_path: Path, build: Build) -> None:
    weights = TinyModel().weights()
    weights["output_norm.weight"][:] = np.float32(3e38)
    weights["token_embd.weight"] *= 100
    write_gguf(tmp_path / "m.gguf", TinyModel(), weights=weights)
    with pytest.raises(BuildEngineError, match="not finite"):
        build(tmp_path / "m.gguf", tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_build_prints_where_the_engine_is(tiny_engine: Path, tiny_gguf: Path) -> None:
    command = [sys.executable, "-m", "build_engine", "build", "--model", str(tiny_gguf), "--json"]
    command += ["--output", str(tiny_engine)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["engine_dir"] == str(tiny_engine)
    assert document["reused"] is True
