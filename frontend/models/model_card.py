"""Builds the entry of a model in /v1/models: its names, context length, limits and capabilities."""

from __future__ import annotations

from typing import Any

from frontend.models.capabilities import capabilities
from frontend.models.registry import ServedModel
from frontend.settings import FrontendSettings
from llm_pipeline.protocol.fields import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from llm_pipeline.protocol.model_info import ModelInfo

_OWNER = "triton-completions"


async def model_card(name: str, model: ServedModel, settings: FrontendSettings, created: int) -> dict[str, Any]:
    """The model under one of its names. `root`, `parent` and `max_model_len` are as in vLLM.

    Takes at most a second if the engine does not respond.
    """
    deployed = model.deployed
    info = await model.info_cache.read()
    max_model_len = model.max_model_len or (None if info is None else info.context_length)
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": _OWNER,
        "root": model.name,
        "parent": deployed.parent,
        "max_model_len": max_model_len,
        "aliases": list(deployed.names[1:]),
        "limits": _limits(model, settings, max_model_len, info),
        "defaults": {name: value for name, value in deployed.defaults.model_dump().items() if value is not None},
        "capabilities": capabilities(deployed, info),
        **({} if info is None else {"vocab_size": info.vocab_size, "fills_in_middle": info.fills_in_middle}),
    }


def _limits(
    model: ServedModel, settings: FrontendSettings, max_model_len: int | None, info: ModelInfo | None
) -> dict[str, Any]:
    limits, default = model.deployed.limits, model.deployed.default_max_tokens
    if default is None and info is not None:
        default = info.default_max_tokens
    return {
        "default_max_tokens": default,
        "max_tokens": limits.max_tokens or max_model_len,
        "max_choices": model.max_choices,
        "max_in_flight": limits.max_in_flight or settings.max_in_flight,
        "max_stop_strings": MAX_STOP_STRINGS,
        "max_stop_characters": MAX_STOP_CHARACTERS,
        "max_body_bytes": settings.max_body_bytes,
        "request_timeout_s": model.timeout_s,
    }
