"""Loads the CPU executor: checks the engine directory and the libraries, then starts the engine process."""

from __future__ import annotations

import importlib.util

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.cpu.executor import CpuExecutor
from llm_pipeline.executors.port import Executor, OutputSink
from llm_pipeline.runtime.settings import PipelineSettings

# Imported by the engine process alone; checked here, where the error can name the extra to install.
_LIBRARIES = ("openvino", "safetensors")


def load_executor(settings: PipelineSettings, manifest: EngineManifest, sink: OutputSink) -> Executor:
    """Returns the executor once its engine process is ready, which takes seconds.

    Raises ManifestError if the engine is not for CPUs or a file is missing or changed, ImportError if a library is
    missing, and EngineStartError if the engine process can't load the engine.
    """
    manifest.require_runtime("cpu", settings.engine_dir)
    manifest.check_files(settings.engine_dir)
    for library in _LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
    return CpuExecutor(settings, manifest, sink)
