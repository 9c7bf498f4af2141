"""Fixtures of the GPU tests. They need TensorRT-LLM, a GPU, and an engine for it in GPU_ENGINE_DIR; else they skip.

docs/tensorrt-llm.md describes how to build the engine. NOT RUN yet: written on a machine without a GPU.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.port import Executor, OutputSink
from llm_pipeline.executors.registry import create_executor
from llm_pipeline.protocol.messages import EngineStep
from llm_pipeline.runtime.settings import PipelineSettings
from tests.support.executor_rules import RuleBench

MAX_ACTIVE = 4
_NUMBERS = itertools.count(1)  # of all requests to the shared engine


def missing() -> str | None:
    """Returns the reason why these tests can't run on this machine, if any."""
    if importlib.util.find_spec("tensorrt_llm") is None:
        return "tensorrt_llm is not installed: run this inside NVIDIA's trtllm-python-py3 image"
    import torch  # type: ignore[import-not-found, unused-ignore]  # it comes with TensorRT-LLM

    if torch.cuda.device_count() == 0:
        return "no GPU is visible: check the driver, docker's --gpus, and CUDA_VISIBLE_DEVICES"
    folder = os.environ.get("GPU_ENGINE_DIR")
    if not folder:
        return "GPU_ENGINE_DIR is not set: build an engine for this GPU (docs/tensorrt-llm.md)"
    if not (Path(folder) / "manifest.json").is_file():
        return f"GPU_ENGINE_DIR={folder} contains no manifest.json"
    return None


@pytest.fixture(scope="session", autouse=True)
def _gpu_is_here() -> None:
    if reason := missing():
        pytest.skip(reason)


class GpuEngine:
    """One loaded engine for all tests, because loading takes minutes. Each test has its own sink."""

    def __init__(self) -> None:
        self.settings = PipelineSettings(
            engine_dir=Path(os.environ["GPU_ENGINE_DIR"]),
            executor="tensorrt_llm",
            trtllm_max_batch_size=MAX_ACTIVE,
            trtllm_kv_cache_free_fraction=0.5,
        )
        self.manifest = EngineManifest.load(self.settings.engine_dir)
        self._sink: OutputSink = lambda step: None
        self.executor: Executor = create_executor(self.settings, self.manifest, self._forward)

    def listen(self, sink: OutputSink) -> Executor:
        self._sink = sink
        return self.executor

    def _forward(self, step: EngineStep) -> None:
        self._sink(step)


@pytest.fixture(scope="session")
def gpu_engine(_gpu_is_here: None) -> Iterator[GpuEngine]:
    engine = GpuEngine()
    yield engine
    engine.executor.close()


@pytest.fixture
def bench(gpu_engine: GpuEngine) -> RuleBench:
    """A RuleBench over the shared engine. Its numbers differ from those of all other tests."""
    long = gpu_engine.manifest.limits.context_length - 64
    return RuleBench(gpu_engine.listen, long=long, max_active=MAX_ACTIVE, numbers=_NUMBERS)
