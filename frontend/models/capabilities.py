"""The per-model capability flags listed by /v1/models."""

from __future__ import annotations

from typing import Any

from llm_pipeline.protocol.model_info import ModelInfo
from llm_pipeline.runtime.deployment import DeployedModel, ModelKind

# What every engine of our ensemble supports and NVIDIA's ensemble has no input for.
ENSEMBLE_ONLY = (
    "prompt_token_ids",
    "min_p",
    "skip_special_tokens",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "echo",
    "stop_token_ids",
    "truncate_prompt_tokens",
    "truncation_side",
    "add_special_tokens",
)
# What depends on the engine of our ensemble, and NVIDIA's ensemble has no input for.
_UNSUPPORTED_BY_NVIDIA: dict[str, Any] = {
    "logprobs": None,
    "prompt_logprobs": False,
    "best_of": False,
    "suffix": False,
    "chat": False,
    "logit_bias": False,
    "priority": False,
}


def capabilities(deployed: DeployedModel, info: ModelInfo | None) -> dict[str, Any]:
    """The flags by name, those of the engine only if `info` is known. `executor` is null for NVIDIA's ensemble."""
    is_ensemble = deployed.kind is ModelKind.ENSEMBLE
    return {
        "kind": deployed.kind.value,
        "executor": deployed.executor,
        **(_of_engine(info) if is_ensemble else _UNSUPPORTED_BY_NVIDIA),
        **dict.fromkeys(ENSEMBLE_ONLY, is_ensemble),
    }


def _of_engine(info: ModelInfo | None) -> dict[str, Any]:
    if info is None:
        return {}
    best_of = info.capabilities.logprobs is not None  # best_of ranks by logprobs
    return {
        **info.capabilities.as_document(),
        "best_of": best_of,
        "suffix": info.fills_in_middle,
        "chat": info.chat is not None,
    }
