"""Engines of tiny models, built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from build_engine.artifact.resources import Resources
from build_engine.artifact.result import BuildResult
from build_engine.cpu.build import BuildRequest, build_engine
from build_engine.cpu.default_model import find_model
from build_engine.progress import SilentProgress
from build_engine.targets.registry import find_target
from tests.fakes.tensorrt_llm_build import install
from tests.support.tiny_models import TinyModel, write_gguf

Build = Callable[..., BuildResult]


def run_build(
    model: Path | None, output: Path, precision: str = "fp16", resources: Resources | None = None, **options: Any
) -> BuildResult:
    request = BuildRequest(find_model(model), find_target("cpu"), precision, output, **options)
    return build_engine(request, SilentProgress(), resources)


@pytest.fixture(scope="session")
def build() -> Build:
    return run_build


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
    """Installs the stand-in for TensorRT-LLM."""
    install(tmp_path, monkeypatch)
