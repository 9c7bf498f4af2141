"""Holds the executor bindings, as upstream's compiled module does."""

from tensorrt_llm.bindings import executor

__all__ = ["executor"]
