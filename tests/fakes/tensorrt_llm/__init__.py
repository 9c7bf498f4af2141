"""A fake of TensorRT-LLM: the executor bindings with upstream's signatures and checks; an engine without a GPU.

Signatures come from tests/data/tensorrt_llm_api.json, which was written from upstream's sources; the engine's behavior
is this repository's reading of docs/tensorrt-llm.md, and no proof of how TensorRT-LLM behaves. A script (script.py,
from the file that FAKE_TENSORRT_LLM names) describes the machine and the completions of single prompts.
"""

from tensorrt_llm import bindings
from tensorrt_llm.script import read_script

__version__ = read_script().version
__all__ = ["__version__", "bindings"]
