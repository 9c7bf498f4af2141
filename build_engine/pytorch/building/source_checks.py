"""Checks the content of a model directory before it is built: its own code, the weights' sizes, and its tokenizer."""

from __future__ import annotations

from typing import Any

from build_engine.artifact.model_directory import CONFIG_NAME, read_json_object
from build_engine.artifact.model_tokenizer import EngineTokenizer, read_tokenizer
from build_engine.artifact.safetensors_headers import list_tensors
from build_engine.errors import EngineRefusedError
from build_engine.pytorch.architectures import FIRST_RELEASE, NEWEST_RELEASE, parse_release
from build_engine.pytorch.building.source_files import SourceFiles

# Values of `model_type` for which TensorRT-LLM needs no code of the model: it has a configuration class of its own
# (load_pretrained_config, tensorrt_llm/_torch/pyexecutor/config_utils.py @00679c66), or transformers has one
# (CONFIG_MAPPING_NAMES, src/transformers/models/auto/configuration_auto.py @00100232 for the 4.57 line of release 1.2,
# auto_mappings.py @00290f09 for the 5.x line of later ones) and prefers it as long as trust_remote_code is off. Models
# of these types whose files come with code, such as DeepSeek V3, load without it. The transformers version that each
# release pins was not read.
_KNOWN_SINCE_1_2 = frozenset(
    {"cohere2", "deepseek_v3", "deepseek_v32", "exaone4", "gemma2", "gemma3", "gemma3_text", "glm4", "glm4_moe"}
    | {"gpt_oss", "hunyuan_v1_dense", "hunyuan_v1_moe", "kimi_k2", "llama", "llama4", "llama4_text", "llava_next"}
    | {"mistral", "mistral3", "mixtral", "mllama", "nemotron", "phi3", "phi4_multimodal", "phimoe", "qwen2"}
    | {"qwen2_5_vl", "qwen2_moe", "qwen2_vl", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_vl", "qwen3_vl_moe"}
    | {"seed_oss", "starcoder2"}
)
_KNOWN_SINCE_1_3 = frozenset(
    {"afmoe", "exaone4_5", "exaone_moe", "gemma4", "gemma4_text", "gemma4_unified", "glm4_moe_lite", "glm_moe_dsa"}
    | {"kimi_k3", "kimi_linear", "laguna", "minicpmv4_6", "minimax_m2", "nemotron_h", "qwen3_5", "qwen3_5_moe"}
    | {"qwen3_5_moe_text", "qwen3_5_text", "qwen4_exp", "qwen4_exp_text"}
)


def check_source(files: SourceFiles, vocab_size: int, trtllm_version: str) -> EngineTokenizer:
    """The tokenizer for the engine directory. `vocab_size` is the number of rows of the output matrix.

    Raises EngineRefusedError if the model needs code of its own, a file of weights has another size than its header
    describes, or the tokenizer can't be loaded or has ids that the model has no logits for.
    """
    _require_no_code(read_json_object(files.directory / CONFIG_NAME), trtllm_version)
    _require_whole_files(files)
    tokenizer = read_tokenizer(files.directory, vocab_size)
    if tokenizer.token_count > vocab_size:
        raise EngineRefusedError(
            f"The tokenizer in {files.directory} has ids up to {tokenizer.token_count - 1}, and the model has logits "
            f"for {vocab_size}. Use the tokenizer of this model."
        )
    return tokenizer


def _require_no_code(config: dict[str, Any], trtllm_version: str) -> None:
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict) or "AutoConfig" not in auto_map:
        return
    model_type = config.get("model_type")
    is_new = (parse_release(trtllm_version) or FIRST_RELEASE) > FIRST_RELEASE
    if model_type in _KNOWN_SINCE_1_2 or (model_type in _KNOWN_SINCE_1_3 and is_new):
        return
    if model_type in _KNOWN_SINCE_1_3:
        remedy = f"Choose --tensorrt-llm {NEWEST_RELEASE} or newer, which knows this model_type"
    else:
        remedy = "Use an export of the model without it"
    raise EngineRefusedError(
        f"{CONFIG_NAME} needs code of the model's own ({auto_map['AutoConfig']}) for model_type {model_type!r}, and "
        f"such code is never executed here (trust_remote_code is off). {remedy}, or remove auto_map if the "
        "transformers release of your TensorRT-LLM knows this model_type."
    )


def _require_whole_files(files: SourceFiles) -> None:
    """A partial download has a valid header and too few bytes; a damaged one may have too many."""
    described: dict[str, int] = {}
    for tensor in list_tensors(files.directory).values():
        end = tensor.offset + tensor.size_bytes
        described[tensor.path.name] = max(described.get(tensor.path.name, 0), end)
    for name in files.weights:
        size = (files.directory / name).stat().st_size
        if name not in described:
            raise EngineRefusedError(f"{name} has no tensors. Download it again.")
        if size != described[name]:
            raise EngineRefusedError(
                f"{name} has {size} bytes, and its header describes {described[name]}. Download it again."
            )
