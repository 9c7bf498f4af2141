"""Published figures of the models in tests/data. docs/engine-plans.md repeats each figure with its source.

The models' own pages and files could not be opened, so "quoted" means read in another public repository or page that
repeats the figure, and "read" means read in the named source.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    model: str
    published: float
    source: str


PARAMETERS = (
    Figure("llama-3.1-8b", 16_060_522_496 / 2, "quoted: total_size of model.safetensors.index.json, 2 bytes each"),
    Figure("llama-3.1-70b", 141_107_412_992 / 2, "quoted: total_size of model.safetensors.index.json, 2 bytes each"),
    Figure("qwen3-8b", 8.2e9, "quoted: the model card's Number of Parameters"),
    Figure("qwen3-32b", 32.8e9, "quoted: the model card's Number of Parameters"),
    Figure("mistral-7b", 7_248_023_552, "read as an excerpt: Keras preset mistral_0.3_7b_en, params"),
    Figure("mixtral-8x7b", 46_702_792_704, "read: keras-team/keras-hub, mixtral_presets.py, params"),
    Figure("smollm2-135m", 134_515_008, "quoted: counts that several public repositories print of the loaded model"),
)
NON_EMBEDDING_PARAMETERS = (
    Figure("qwen3-8b", 6.95e9, "quoted: the model card's Number of Parameters (Non-Embedding)"),
    Figure("qwen3-32b", 31.2e9, "quoted: the model card's Number of Parameters (Non-Embedding)"),
)
# The table's GB are 2^30 bytes: 2 x 32 layers x 8 heads x 128 x 2 bytes x 128,000 tokens are 15.625 of them.
KV_GIB_OF_128000_FP16_TOKENS = (
    Figure("llama-3.1-8b", 15.62, "quoted in huggingface/blog#2345: table of huggingface.co/blog/llama31"),
    Figure("llama-3.1-70b", 39.06, "quoted in huggingface/blog#2345: table of huggingface.co/blog/llama31"),
)
FP8_WEIGHTS = (
    Figure(
        "llama-3.1-8b",
        9_081_280_648,
        "read: a benchmark script's size of N-FP8; that it is this model is inferred from N-BF16 next to it",
    ),
)
# A public guide that prints its commands and logs: Llama 3 8B Instruct, the same shape as 3.1, in bfloat16, built with
# TensorRT-LLM 0.9.0 on 22 May 2024 with max_num_tokens 16384. An older version than the supported ones.
BF16_ENGINE_WEIGHTS = (Figure("llama-3.1-8b", 16_060_522_496, "read: Total Weights Memory of that log"),)
ACTIVATION_MAX_NUM_TOKENS = 16_384
BF16_ENGINE_ACTIVATIONS = (Figure("llama-3.1-8b", 1_577_062_400, "read: Total Activation Memory of that log"),)
# Of models that only the PyTorch runtime serves: exact counts of the loaded model, which several public repositories
# print (n_params of llama.cpp, parameter_count of Ollama, scans of safetensors headers).
PYTORCH_PARAMETERS = (
    Figure("deepseek-v3", 671_026_419_200, "quoted: scans of the safetensors headers; without the draft layer"),
    Figure("gemma-3-27b", 27_009_346_304, "quoted: n_params of llama.cpp, without the vision encoder"),
    Figure("gpt-oss-120b", 116_829_156_672, "quoted: parameter_count of Ollama"),
    Figure("gpt-oss-20b", 20_914_757_184, "quoted: parameter_count of Ollama"),
    Figure("nemotron-3-nano-30b", 31_577_940_288, "quoted: n_params of llama.cpp"),
    Figure("qwen3-30b-a3b", 30_532_122_624, "quoted: a scan of the safetensors headers, and n_params of llama.cpp"),
    Figure("qwen3.5-27b", 26_895_998_464, "quoted: n_params of llama.cpp, without vision encoder and draft layer"),
)
# The gpt-oss model card (arXiv 2508.10925), Table 1, as copies of its text repeat it.
CHECKPOINT_GIB = (
    Figure("gpt-oss-120b", 60.8, "quoted: model card, Table 1, Checkpoint Size"),
    Figure("gpt-oss-20b", 12.8, "quoted: model card, Table 1, Checkpoint Size"),
)
MODEL_CARD_PARAMETERS = (
    Figure("gpt-oss-120b", 116.83e9, "quoted: model card, Table 1, Total Parameters"),
    Figure("gpt-oss-20b", 20.91e9, "quoted: model card, Table 1, Total Parameters"),
)
# A public log of trtllm-serve, TensorRT-LLM 1.1.0rc3, gpt-oss-120b on a DGX Spark (GB10), 20 December 2025: one GPU,
# max_batch_size 64, max_num_tokens 8192. Older than the releases that are planned for.
GPT_OSS_LOG_KV_BYTES_PER_TOKEN = 73_728  # "kv size is 73728"
GPT_OSS_LOG_GPU_GIB = 119.70  # "device total memory"
GPT_OSS_LOG_WEIGHTS_GIB = 63.52  # "Memory used after loading model weights (inside torch)"
GPT_OSS_LOG_ACTIVATIONS_GIB = 0.85  # "Memory dynamically allocated during inference (inside torch)"
GPT_OSS_LOG_GRAPHS = 11  # "Creating CUDA graph instances for 11 batch sizes."
