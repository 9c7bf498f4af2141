"""What a request may ask of a model where models differ, as /models shows it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llm_pipeline.protocol.model_info import ModelInfo
from llm_pipeline.runtime.deployment import DeployedModel, ModelKind

# What depends on whose ensemble it is. NVIDIA's has no input for these.
_OURS_ONLY = (
    *("prompt_token_ids", "min_p", "skip_special_tokens", "return_token_ids", "return_tokens_as_token_ids", "echo"),
    *("stop_token_ids", "truncate_prompt_tokens", "add_special_tokens"),
)
# What depends on the engine, too, when the ensemble is ours.
_NOT_THEIRS: dict[str, Any] = {
    "logprobs": None,
    "prompt_logprobs": False,
    "best_of": False,
    "suffix": False,
    "logit_bias": False,
    "priority": False,
}


def capabilities(deployed: DeployedModel, facts: ModelInfo | None) -> dict[str, Any]:
    """By name. `executor` is null where what makes the tokens is not known here, as behind NVIDIA's ensemble."""
    is_ours = deployed.kind is ModelKind.ENSEMBLE
    return {
        "kind": deployed.kind.value,
        "executor": deployed.executor,
        **(_of_engine(facts) if is_ours else _NOT_THEIRS),
        **dict.fromkeys(_OURS_ONLY, is_ours),
    }


def _of_engine(facts: ModelInfo | None) -> dict[str, Any]:
    if facts is None:
        return {}
    best_of = facts.capabilities.logprobs is not None  # which ranks by them
    return {**asdict(facts.capabilities), "best_of": best_of, "suffix": facts.fills_in_middle}
