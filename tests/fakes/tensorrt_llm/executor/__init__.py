"""`tensorrt_llm.executor`: the classes of requests, results and errors that users of the LLM API see."""

from tensorrt_llm.executor.request import LoRARequest
from tensorrt_llm.executor.result import CompletionOutput, GenerationResult, IterationResult
from tensorrt_llm.executor.utils import RequestError

__all__ = ["CompletionOutput", "GenerationResult", "IterationResult", "LoRARequest", "RequestError"]
