"""The registry: executors by name, and errors that help to install them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any, get_args

import pytest

from llm_pipeline.executors.port import EngineStartError
from llm_pipeline.executors.registry import EXECUTOR_NAMES, create_executor
from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.runtime.settings import PipelineSettings
from tests.support.sample_requests import make_manifest


def test_every_executor_of_the_settings_is_registered() -> None:
    assert set(EXECUTOR_NAMES) == set(get_args(ExecutorName))


def test_unknown_name_is_rejected_with_the_known_ones(tmp_path: Path) -> None:
    settings = PipelineSettings(engine_dir=tmp_path).model_copy(update={"executor": "gpu"})
    with pytest.raises(EngineStartError, match=r"'gpu'.*cpu, tensorrt_llm, tensorrt_llm_pytorch, scripted"):
        create_executor(settings, make_manifest(), lambda step: None)


def test_missing_library_is_reported_with_the_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineStartError, match=r"No module named 'openvino'.*triton-completions\[cpu\]"):
        create_executor(PipelineSettings(engine_dir=tmp_path), make_manifest(), lambda step: None)


def test_heavy_libraries_are_imported_by_no_other_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted executor runs in images without OpenVINO and TensorRT-LLM."""
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    real_import = builtins.__import__

    def import_without_heavy_libraries(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("openvino", "tensorrt_llm", "torch"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_heavy_libraries)
    settings = PipelineSettings(engine_dir=tmp_path, executor="scripted")
    create_executor(settings, make_manifest(), lambda step: None).close()
