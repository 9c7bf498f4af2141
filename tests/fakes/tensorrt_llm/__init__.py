"""A stand-in for TensorRT-LLM: the executor bindings with upstream's signatures and refusals; an engine without a GPU.

Signatures come from tests/data/tensorrt_llm_api.json, which was written from upstream's sources; what the engine does
is this repository's reading of docs/tensorrt-llm.md, and no proof of how TensorRT-LLM behaves. A script (script.py,
from the file that FAKE_TENSORRT_LLM names) says what the machine is and how single prompts are answered.
"""

from tensorrt_llm import bindings
from tensorrt_llm.script import read_script

__version__ = read_script().version
__all__ = ["__version__", "bindings"]
