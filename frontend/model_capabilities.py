"""What a request may ask of a model where models differ, as /models shows it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llm_pipeline.deployment import DeployedModel, ModelKind
from llm_pipeline.description import ModelDescription


def capabilities(deployed: DeployedModel, facts: ModelDescription | None) -> dict[str, Any]:
    """By name. `executor` is null where what makes the tokens is not known here, as behind NVIDIA's ensemble."""
    is_ours = deployed.kind is ModelKind.ENSEMBLE
    return {
        "kind": deployed.kind.value,
        "executor": deployed.executor,
        **({} if facts is None else asdict(facts.capabilities)),
        "prompt_token_ids": is_ours,
        "min_p": is_ours,
        "skip_special_tokens": is_ours,  # false, that is
        "return_tokens_as_token_ids": is_ours,
    }
