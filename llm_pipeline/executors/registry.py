"""Creates the executor that the settings name. Its heavy libraries are imported only then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.port import EngineStartError, Executor, OutputSink
from llm_pipeline.runtime.settings import PipelineSettings

LoadExecutor: TypeAlias = Callable[[PipelineSettings, EngineManifest, OutputSink], Executor]


def _import_cpu() -> LoadExecutor:
    from llm_pipeline.executors.cpu.load import load_executor

    return load_executor


def _import_tensorrt_llm() -> LoadExecutor:
    from llm_pipeline.executors.tensorrt_llm.load import load_executor

    return load_executor


def _import_tensorrt_llm_pytorch() -> LoadExecutor:
    from llm_pipeline.executors.tensorrt_llm_pytorch.load import load_executor

    return load_executor


def _import_scripted() -> LoadExecutor:
    from llm_pipeline.executors.scripted.load import load_executor

    return load_executor


@dataclass(frozen=True)
class _Entry:
    """One executor: its lazy import, and the remedy if a library is missing."""

    import_load: Callable[[], LoadExecutor]
    remedy: str


_TENSORRT_LLM_IMAGE = "Start from NVIDIA's trtllm-python-py3 image, or: pip install 'triton-completions[{}]'"
_EXECUTORS = {
    "cpu": _Entry(_import_cpu, "Install it with: pip install 'triton-completions[cpu]'"),
    "tensorrt_llm": _Entry(_import_tensorrt_llm, _TENSORRT_LLM_IMAGE.format("tensorrt-llm")),
    "tensorrt_llm_pytorch": _Entry(_import_tensorrt_llm_pytorch, _TENSORRT_LLM_IMAGE.format("tensorrt-llm-pytorch")),
    "scripted": _Entry(_import_scripted, "Install it with: pip install triton-completions"),
}
EXECUTOR_NAMES = tuple(_EXECUTORS)


def create_executor(settings: PipelineSettings, manifest: EngineManifest, sink: OutputSink) -> Executor:
    """Loads the executor that `settings.executor` names; TensorRT-LLM takes minutes.

    Raises EngineStartError if the name is unknown, a library is missing or the engine can't start, and ManifestError if
    the engine directory does not fit the executor.
    """
    name: str = settings.executor
    entry = _EXECUTORS.get(name)
    if entry is None:
        raise EngineStartError(f"Unknown EXECUTOR {name!r}. Known executors: {', '.join(EXECUTOR_NAMES)}.")
    if settings.trtllm_lora_adapters and name != "tensorrt_llm_pytorch":
        raise EngineStartError(
            f"TRTLLM_LORA_ADAPTERS is set, but EXECUTOR={name} has no LoRA. Unset it, or serve a model directory with "
            "EXECUTOR=tensorrt_llm_pytorch."
        )
    try:
        return entry.import_load()(settings, manifest, sink)
    except ImportError as error:
        raise EngineStartError(
            f"EXECUTOR={name} needs a library that can't be imported here: {error}. {entry.remedy}"
        ) from error
