"""The default engine, built once (about 25 s) or taken from .run/engines when a good one is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_tensorrt_llm import install
from tiny_models import TinyModel, write_gguf

from build_engine.build import ENGINE_FILES, BuildRequest, BuildResult, build_engine
from build_engine.default_model import find_default_model, find_model
from build_engine.progress import SilentProgress
from build_engine.recipe import default_output
from build_engine.targets import find_target
from build_engine.verify import file_problems
from llm_pipeline.engine_manifest import EngineManifest, ManifestError

REPOSITORY = Path(__file__).parents[3]
Build = Callable[..., BuildResult]


def run_build(model: Path | None, output: Path, precision: str = "fp16", **options: object) -> BuildResult:
    request = BuildRequest(find_model(model), find_target("cpu"), precision, output, **options)  # type: ignore[arg-type]
    return build_engine(request, SilentProgress())


@pytest.fixture(scope="session")
def build() -> Build:
    return run_build


@pytest.fixture(scope="session")
def default_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = find_default_model().model_name
    assert name
    kept = REPOSITORY / default_output(name, find_target("cpu"), "fp16")
    try:
        manifest = EngineManifest.load(kept)
        if set(manifest.files) == set(ENGINE_FILES) and not file_problems(kept, manifest):
            return kept
    except ManifestError:
        pass
    return run_build(None, tmp_path_factory.mktemp("default") / "engine").engine_dir


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_gguf(path, TinyModel())
    return path


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Path:
    return run_build(tiny_gguf, tmp_path_factory.mktemp("tiny-engine") / "engine").engine_dir


@pytest.fixture
def _tensorrt_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with three H100s and a TensorRT-LLM that is a stand-in."""
    install(tmp_path, monkeypatch)
