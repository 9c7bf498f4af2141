"""Classifies the texts of upstream's RequestError, which carries no code. Pure.

Read in NVIDIA/TensorRT-LLM: "Guided decoding error: " precedes what the compiler of grammars says of one request
(tensorrt_llm/_torch/pyexecutor/guided_decoder.py, since PR 9078). The text of a failed step is that of its exception,
and comes for every running request (_handle_errors in py_executor.py), CUDA's texts included.
"""

from __future__ import annotations

from llm_pipeline.executors.tensorrt_llm import error_classification as of_engines
from llm_pipeline.executors.tensorrt_llm.engine import FailureKind

_OF_A_GUIDE = "Guided decoding error: "


def classify(message: str) -> FailureKind:
    """Returns the kind of failure; UNKNOWN unless the text is certain.

    A guide may make its compiler say anything, so what follows must not decide the fate of the engine.
    """
    if message.startswith(_OF_A_GUIDE):
        return FailureKind.REQUEST
    return of_engines.classify(message)


def loggable(message: str) -> str:
    """Returns the message without what may be a part of a guide."""
    return f"{_OF_A_GUIDE}its text is not logged" if message.startswith(_OF_A_GUIDE) else message
