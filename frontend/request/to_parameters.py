"""Turns a valid HTTP request into one CompletionParameters message for each of its candidates."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from frontend.api_key import ApiKey
from frontend.request.generation_fields import GenerationFields, Prompt
from frontend.request.key_rules import permitted_priority
from frontend.request.schemas import CompletionRequest
from llm_pipeline.protocol.messages import GUIDE_PARAM, CompletionParameters


@dataclass(frozen=True)
class EngineInput:
    """The part of a valid request that an operation adds to the fields that all of them have.

    `parameters` are fields of CompletionParameters by name. Each prompt is completed `candidates` times.
    """

    prompts: tuple[Prompt, ...]
    candidates: int
    parameters: Mapping[str, Any]


def completion_input(request: CompletionRequest) -> EngineInput:
    """The prompts and the own fields of a completion request."""
    parameters = {
        "echo": request.echo,
        "suffix": request.suffix or None,
        "add_special_tokens": request.add_special_tokens,
        "num_logprobs": request.logprobs,
        "return_logprob_values": request.candidates > request.n,
        "return_token_ids": request.wants_token_ids,
        "return_tokens_as_token_ids": request.return_tokens_as_token_ids,
    }
    return EngineInput(request.prompt, request.candidates, parameters)


def parameters_of(
    request: GenerationFields,
    own: EngineInput,
    request_id: str,
    *,
    key: ApiKey | None = None,
    tenant: str | None = None,
) -> list[CompletionParameters]:
    """One message per candidate: those of the first prompt, then those of the next. Without best_of, one per choice.

    `tenant` is the name for `key` in Triton. Raises PipelineError (400) for a priority that the key may not use.
    """
    common = {**_common_parameters(request), **own.parameters}
    common["priority"] = permitted_priority(request.priority, key)
    common["tenant"] = tenant
    common["tenant_share"] = None if key is None else key.share
    prompts = [prompt for prompt in own.prompts for _ in range(own.candidates)]
    return [
        CompletionParameters(
            request_key=os.urandom(16).hex(),
            request_id=request_id,
            **{**common, **_parameters_of_choice(request, prompt, index)},
        )
        for index, prompt in enumerate(prompts)
    ]


# Fields with the same name and meaning in both.
_COPIED_FIELDS = tuple(
    field.name for field in fields(CompletionParameters) if field.name in GenerationFields.model_fields
)


def _common_parameters(request: GenerationFields) -> dict[str, Any]:
    guides = request.guides
    return {
        **{name: getattr(request, name) for name in _COPIED_FIELDS},
        "max_tokens": request.token_limit,
        "guide": next(iter(guides.values()), None),
        "guide_param": next(iter(guides), GUIDE_PARAM),
        "token_limit_param": request.token_limit_name,
    }


def _parameters_of_choice(request: GenerationFields, prompt: Prompt, index: int) -> dict[str, Any]:
    return {
        "prompt_text": prompt if isinstance(prompt, str) else None,
        "token_ids": None if isinstance(prompt, str) else prompt,
        "seed": None if request.seed is None else choice_seed(request.seed, index),
    }


def choice_seed(seed: int, index: int) -> int:
    """The int64 seed of choice `index`: the request's own for the first, a hash of it and the index for the others.

    BLAKE2b with an 8 byte digest over the seed (int64) and the index (uint64), little-endian. This must not change:
    clients would get another text for their seeds. Without it, choices of equal prompts would be equal.
    """
    if index == 0:
        return seed
    digest = hashlib.blake2b(struct.pack("<qQ", seed, index), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
