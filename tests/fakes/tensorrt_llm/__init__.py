"""A fake of TensorRT-LLM: the executor bindings and the LLM API with upstream's signatures and checks; no GPU.

Signatures come from tests/data/tensorrt_llm_api.json and tensorrt_llm_llm_api.json, which were written from upstream's
sources; the engine's behavior is this repository's reading of docs/tensorrt-llm.md, and no proof of how TensorRT-LLM
behaves. A script (script.py, from the file that FAKE_TENSORRT_LLM names) describes the machine and the completions of
single prompts.
"""

from typing import Any

from tensorrt_llm import bindings
from tensorrt_llm.script import read_script

__version__ = read_script().version
__all__ = ["LLM", "SamplingParams", "__version__", "bindings"]


def __getattr__(name: str) -> Any:
    """Imports the LLM API at first use: tests of the bindings do without its pydantic models."""
    if name not in ("LLM", "SamplingParams"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tensorrt_llm import llmapi

    return getattr(llmapi, name)
