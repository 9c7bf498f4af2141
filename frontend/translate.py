"""From a valid HTTP request to one message for each of its choices."""

from __future__ import annotations

import hashlib
import struct
import uuid

from frontend.schemas import CompletionRequest, Prompt
from llm_pipeline.messages import CompletionParameters


def parameters_of(request: CompletionRequest, request_id: str) -> list[CompletionParameters]:
    """One message per choice, in the order of `index`: the n choices of the first prompt, then those of the next."""
    prompts = [prompt for prompt in request.prompt for _ in range(request.n)]
    return [_parameters(request, prompt, index, request_id) for index, prompt in enumerate(prompts)]


def _parameters(request: CompletionRequest, prompt: Prompt, index: int, request_id: str) -> CompletionParameters:
    return CompletionParameters(
        request_key=uuid.uuid4().hex,
        request_id=request_id,
        text=prompt if isinstance(prompt, str) else None,
        token_ids=None if isinstance(prompt, str) else prompt,
        max_tokens=request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=None if request.seed is None else choice_seed(request.seed, index),
        stop=request.stop,
        include_stop_str_in_output=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
        return_token_ids=request.wants_token_ids,
        stream=request.stream,
    )


def choice_seed(seed: int, index: int) -> int:
    """The int64 seed of choice `index`: the request's own for the first, a hash of it and the index for the others.

    BLAKE2b with an 8 byte digest over the seed (int64) and the index (uint64), little-endian. Fixed for good: a change
    would change the text that clients get for their seeds. Without it, choices of equal prompts would be equal.
    """
    if index == 0:
        return seed
    digest = hashlib.blake2b(struct.pack("<qQ", seed, index), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
