"""The architectures that TensorRT-LLM's PyTorch runtime knows, by release: upstream's lists as data.

1.3: MODEL_ARCH_TO_MODULE in tensorrt_llm/_torch/models/_arch_index.py, NVIDIA/TensorRT-LLM@065ff9e9, a state between
the first 1.3 candidates and 1.4. The early candidates lack some of it: 1.3.0rc8 has no Qwen 3.5 (issue 12321).
1.2: the classes that tensorrt_llm/_torch/models/__init__.py imports in its version with K-EXAONE and MiniMax M2, which
the notes of release 1.2.0 name or are older than; the tag itself was not read.
"""

from __future__ import annotations

import re
from enum import Enum

Release = tuple[int, int]
FIRST_RELEASE, END_RELEASE = (1, 2), (1, 5)  # releases that the executor has a profile for
NEWEST_RELEASE = "1.3"  # in messages: the first release with everything that is listed here

_SINCE_1_2 = (
    "DeciLMForCausalLM",
    "DeepseekV32ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Exaone4ForCausalLM",
    "ExaoneMoEForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Glm4MoeForCausalLM",
    "GptOssForCausalLM",
    "HCXVisionForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "HunYuanMoEV1ForCausalLM",
    "Llama4ForConditionalGeneration",
    "LlamaForCausalLM",
    "LlavaLlamaModel",
    "LlavaNextForConditionalGeneration",
    "MiniMaxM2ForCausalLM",
    "Mistral3ForConditionalGeneration",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "MllamaForConditionalGeneration",
    "NemotronForCausalLM",
    "NemotronHForCausalLM",
    "NemotronH_Nano_VL_V2",
    "Phi3ForCausalLM",
    "Phi4MMForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "SeedOssForCausalLM",
    "Starcoder2ForCausalLM",
)
_SINCE_1_3 = (
    "AfmoeForCausalLM",
    "Cohere2ForCausalLM",
    "Cosmos3ForConditionalGeneration",
    "DeepseekV4ForCausalLM",
    "Exaone4_5_ForConditionalGeneration",
    "Gemma4ForCausalLM",
    "Gemma4ForConditionalGeneration",
    "Gemma4UnifiedForConditionalGeneration",
    "GlmMoeDsaForCausalLM",
    "KimiK25ForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
    "KimiLinearForCausalLM",
    "LagunaForCausalLM",
    "MiniCPMV4_6ForConditionalGeneration",
    "MiniMaxM3SparseForCausalLM",
    "MiniMaxM3SparseForConditionalGeneration",
    "MistralLarge3ForCausalLM",
    "NemotronHPuzzleForCausalLM",
    "NemotronH_Nano_Omni_Reasoning_V3",
    "PixtralForConditionalGeneration",
    "Qwen3_5ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
    "Step3p5ForCausalLM",
    "Step3p7ForConditionalGeneration",
)
ARCHITECTURES: dict[str, Release] = {
    **dict.fromkeys(_SINCE_1_2, (1, 2)),
    **dict.fromkeys(_SINCE_1_3, (1, 3)),
}
# In upstream's list too, but not models that complete a text by themselves.
NOT_FOR_COMPLETIONS = {
    **dict.fromkeys(("BertForSequenceClassification", "CLIPVisionModel", "PixtralVisionModel"), "an encoder"),
    **dict.fromkeys(("SiglipVisionModel", "HCXVisionModel"), "an encoder"),
    **dict.fromkeys(("Qwen2ForProcessRewardModel", "Qwen2ForRewardModel"), "a reward model"),
    "Qwen3ForTextEmbedding": "an embedding model",
    **dict.fromkeys(
        (
            "EAGLE3LlamaForCausalLM",
            "Eagle3DeepSeekV3ForCausalLM",
            "Gemma4AssistantForCausalLM",
            "MTPDraftModelForCausalLM",
            "MistralLarge3EagleForCausalLM",
        ),
        "a draft model for speculative decoding",
    ),
    **dict.fromkeys(
        (
            "BartForConditionalGeneration",
            "MBartForConditionalGeneration",
            "T5ForConditionalGeneration",
            "WhisperForConditionalGeneration",
        ),
        "an encoder-decoder model",
    ),
    "QwenImageBenchForConditionalGeneration": "a benchmark of images",
}


class Support(Enum):
    """Whether a release serves an architecture."""

    YES = "yes"
    LATER = "later"  # a newer release does
    UNKNOWN = "unknown"
    OTHER_KIND = "other kind"  # known upstream, but not a decoder


def parse_release(version: str) -> Release | None:
    """Major and minor number of a version such as 1.3.0rc26; None if it is not one."""
    match = re.match(r"(\d+)\.(\d+)(?:\D|$)", version)
    return (int(match[1]), int(match[2])) if match else None


def support(architecture: str, release: Release) -> Support:
    if architecture in NOT_FOR_COMPLETIONS:
        return Support.OTHER_KIND
    first = ARCHITECTURES.get(architecture)
    if first is None:
        return Support.UNKNOWN
    return Support.YES if release >= first else Support.LATER
