"""Classifies the texts of upstream's RequestError, which carries no code. Pure.

Read in NVIDIA/TensorRT-LLM: "Guided decoding error: " precedes what the compiler of grammars says of one request
(tensorrt_llm/_torch/pyexecutor/guided_decoder.py, since PR 9078). The text of a failed step is that of its exception,
and comes for every running request (_handle_errors in py_executor.py), CUDA's texts included.
"""

from __future__ import annotations

from llm_pipeline.executors.tensorrt_llm import error_classification as of_engines
from llm_pipeline.executors.tensorrt_llm.engine import FailureKind


def classify(message: str) -> FailureKind:
    """Returns the kind of failure; UNKNOWN unless the text is certain."""
    if message.startswith("Guided decoding error: "):
        return FailureKind.REQUEST
    return of_engines.classify(message)
