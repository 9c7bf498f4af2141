"""A TensorRT-LLM executor on the stand-in for the LLM API, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_pipeline.executors.tensorrt_llm_pytorch.load import load_executor
from tests.fakes.model_directory import make_model_directory
from tests.support.trtllm_bench import TrtllmBench


class LlmBench(TrtllmBench):
    """One executor on a model directory. `fake` is the stand-in's worker: its requests, its cancellations, its end."""

    name = "tensorrt_llm_pytorch"
    load = staticmethod(load_executor)

    @property
    def fake(self) -> Any:
        from tensorrt_llm.pytorch_engine import LIVE  # type: ignore[import-not-found, unused-ignore]

        return LIVE[-1]

    def _make_directory(self, folder: Path, **engine: Any) -> None:
        make_model_directory(folder, **engine)
