from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from build_engine.artifact.checks import Check, Outcome, verdict
from build_engine.cli.app import app
from build_engine.errors import EngineRefusedError
from build_engine.progress import SilentProgress
from build_engine.verification.verify import verify_engine
from llm_pipeline.engine_files.manifest import EngineFile, EngineManifest, sha256_of


@pytest.fixture
def engine(tmp_path: Path, tiny_engine: Path) -> Path:
    return Path(shutil.copytree(tiny_engine, tmp_path / "engine"))


def failures(engine_dir: Path) -> list[Check]:
    return [check for check in verify_engine(engine_dir, SilentProgress()) if check.failed]


def test_the_default_engine_gives_the_reference_tokens(engine_dir: Path) -> None:
    checks = {check.name: check for check in verify_engine(engine_dir, SilentProgress())}
    assert verdict(checks.values()) is Outcome.PASSED
    assert checks["reference tokens"].detail == "4 of 4 greedy continuations equal"
    assert checks["reference prompts"].detail == "4 of 4 keep their ids as text"


def test_an_untouched_engine_passes(engine: Path) -> None:
    assert failures(engine) == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_changed_file_fails_by_name(engine: Path, name: str) -> None:
    content = bytearray((engine / name).read_bytes())
    content[len(content) // 2] ^= 1
    (engine / name).write_bytes(content)
    assert [(check.name, check.detail[:16]) for check in failures(engine)] == [(name, "has been changed")]


def test_a_cut_file_fails_by_name(engine: Path) -> None:
    os.truncate(engine / "model.safetensors", 10)
    assert failures(engine)[0].detail.startswith("has 10 bytes instead of")


def test_a_missing_file_fails_by_name(engine: Path) -> None:
    (engine / "tokenizer.json").unlink()
    assert failures(engine) == [Check.of("tokenizer.json", False, "is missing")]


def test_an_extra_file_fails_by_name(engine: Path) -> None:
    (engine / "notes.txt").touch()
    assert failures(engine) == [Check.of("notes.txt", False, "is not part of the engine")]


def test_a_manifest_that_points_outside_fails(engine: Path) -> None:
    manifest = EngineManifest.load(engine)
    outside = {"../secret": EngineFile(sha256="0" * 64, size_bytes=1)}
    manifest.model_copy(update={"files": {**manifest.files, **outside}}).save(engine)
    (failure,) = failures(engine)
    assert failure.name == "manifest.json"
    assert "'../secret' is not a plain path below the engine directory" in failure.detail


def test_weights_that_do_not_load_fail(engine: Path) -> None:
    weights = engine / "model.safetensors"
    weights.write_bytes(b"no weights")
    manifest = EngineManifest.load(engine)
    files = {**manifest.files, weights.name: EngineFile(sha256=sha256_of(weights), size_bytes=weights.stat().st_size)}
    manifest.model_copy(update={"files": files}).save(engine)
    assert [check.name for check in failures(engine)] == ["generates"]


def test_an_engine_for_cpus_has_no_accuracy_gate(engine: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(engine), "--threshold", "0.5"])
    assert isinstance(result.exception, EngineRefusedError)


def test_verify_ends_with_the_way_to_mend_it(engine: Path) -> None:
    (engine / "tokenizer.json").unlink()
    result = CliRunner().invoke(app, ["verify", str(engine)])
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert "python -m build_engine build --force" in result.stdout


def test_inspect_shows_where_the_engine_came_from(engine: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(engine)])
    assert result.exit_code == 0
    assert "tiny.gguf" in result.stdout
