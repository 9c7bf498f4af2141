"""From a valid HTTP request to one message for each of its choices."""

from __future__ import annotations

import hashlib
import struct
import uuid

from frontend.request.schemas import CompletionRequest, Prompt
from llm_pipeline.protocol.messages import GUIDE_PARAM, CompletionParameters


def parameters_of(request: CompletionRequest, request_id: str) -> list[CompletionParameters]:
    """One message per candidate: those of the first prompt, then those of the next. Without best_of, one per choice."""
    prompts = [prompt for prompt in request.prompt for _ in range(request.candidates)]
    return [_parameters(request, prompt, index, request_id) for index, prompt in enumerate(prompts)]


def _parameters(request: CompletionRequest, prompt: Prompt, index: int, request_id: str) -> CompletionParameters:
    return CompletionParameters(
        request_key=uuid.uuid4().hex,
        request_id=request_id,
        prompt_text=prompt if isinstance(prompt, str) else None,
        token_ids=None if isinstance(prompt, str) else prompt,
        max_tokens=request.token_limit,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=None if request.seed is None else choice_seed(request.seed, index),
        stop=request.stop,
        include_stop_str_in_output=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
        return_token_ids=request.wants_token_ids,
        return_tokens_as_token_ids=request.return_tokens_as_token_ids,
        stream=request.stream,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=request.logit_bias,
        bad_words=request.bad_words,
        min_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        stop_token_ids=request.stop_token_ids,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        add_special_tokens=request.add_special_tokens,
        priority=request.priority,
        num_logprobs=request.logprobs,
        return_logprob_values=request.candidates > request.n,
        echo=request.echo,
        suffix=request.suffix or None,
        guide=next(iter(request.guides.values()), None),
        guide_param=next(iter(request.guides), GUIDE_PARAM),
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
