"""What others have published about seven models, each figure with its source. docs/engine-plans.md repeats them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    model: str
    published: float
    source: str


PARAMETERS = (
    Figure("llama-3.1-8b", 16_060_522_496 / 2, "meta-llama/Llama-3.1-8B: model.safetensors.index.json, total_size"),
    Figure("llama-3.1-70b", 141_107_412_992 / 2, "meta-llama/Llama-3.1-70B: model.safetensors.index.json, total_size"),
    Figure("qwen3-8b", 8.2e9, "Qwen/Qwen3-8B: model card, Number of Parameters"),
    Figure("qwen3-32b", 32.8e9, "Qwen/Qwen3-32B: model card, Number of Parameters"),
    Figure("mistral-7b", 7.25e9, "mistralai/Mistral-7B-v0.3: model card, Model size"),
    Figure("mixtral-8x7b", 46_702_792_704, "keras-team/keras-hub: mixtral_presets.py, params"),
    Figure("smollm2-135m", 134_515_008, "HuggingFaceTB/SmolLM2-135M: model card, Model size; safetensors total"),
)
NON_EMBEDDING_PARAMETERS = (
    Figure("qwen3-8b", 6.95e9, "Qwen/Qwen3-8B: model card, Non-Embedding"),
    Figure("qwen3-32b", 31.2e9, "Qwen/Qwen3-32B: model card, Non-Embedding"),
)
# The table's GB are 2^30 bytes: 2 x 32 layers x 8 heads x 128 x 2 bytes x 128,000 tokens are 15.625 of them.
KV_GIB_OF_128000_FP16_TOKENS = (
    Figure("llama-3.1-8b", 15.62, "huggingface.co/blog/llama31, inference memory requirements"),
    Figure("llama-3.1-70b", 39.06, "huggingface.co/blog/llama31, inference memory requirements"),
)
FP8_WEIGHTS = (Figure("llama-3.1-8b", 9_081_280_648, "size of an FP8 checkpoint of Llama 3.1 8B in public benchmarks"),)
BF16_ENGINE_WEIGHTS = (
    Figure("llama-3.1-8b", 16_060_522_496, "TensorRT's Total Weights Memory, trtllm-build of Llama 3 8B, 22 May 2024"),
)
