"""Contains the executor bindings, like upstream's compiled module."""

from tensorrt_llm.bindings import executor

__all__ = ["executor"]
