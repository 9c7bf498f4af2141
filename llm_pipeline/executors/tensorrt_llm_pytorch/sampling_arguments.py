"""The arguments of upstream's SamplingParams for a request, by profile. Pure: plain numbers and lists.

Upstream changes the object that is made of them, so each request needs a new one. Sources: SamplingParams of
NVIDIA/TensorRT-LLM in tensorrt_llm/sampling_params.py at a98a9061 (1.2) and tensorrt_llm/executor/params/sampling.py at
1f064c46 (after 1.3.0rc26).
"""

from __future__ import annotations

from typing import Any

from llm_pipeline.protocol.capabilities import PyTorchProfile
from llm_pipeline.protocol.messages import GenerationRequest, SamplingParams

_NEUTRAL = SamplingParams()
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def sampling_arguments(request: GenerationRequest, profile: PyTorchProfile) -> dict[str, Any]:
    """Returns everything but `embedding_bias`, `guided_decoding` and bad words of several tokens.

    `include_stop_str_in_output` is always on: without it, upstream takes the stop token back out of a list of which
    the last part was streamed before (GenerationResultBase._handle_sequence). `stop_token_sequences`, which are hints,
    are not passed: upstream accepts them as text only, with a tokenizer, and postprocess finds stop strings anyway.
    """
    arguments = {
        "max_tokens": max(request.max_tokens, 1),  # upstream refuses 0; outputs.py drops the token
        **_end_tokens(request.stop_token_ids),
        "include_stop_str_in_output": True,
        "detokenize": False,
        "seed": request.sampling.seed % 2**64,
        "bad_token_ids": [words[0] for words in request.sampling.bad_words if len(words) == 1] or None,
    }
    of_profile = _of_1_2 if profile is PyTorchProfile.V1_2 else _of_1_3
    arguments |= of_profile(request)
    return {name: value for name, value in arguments.items() if value is not None}


def bad_sequences(request: GenerationRequest) -> list[list[int]]:
    """Returns the bad words of several tokens."""
    return [list(words) for words in request.sampling.bad_words if len(words) > 1]


def _end_tokens(stop_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """Without an end token, `ignore_eos` makes upstream's worker pass -1; `end_id` None would need a tokenizer."""
    if not stop_token_ids:
        return {"end_id": 0, "ignore_eos": True}
    return {"end_id": stop_token_ids[0], "stop_token_ids": list(stop_token_ids[1:]) or None}


def _of_1_2(request: GenerationRequest) -> dict[str, Any]:
    """Returns what TRTLLMSampler needs, which is the sampler of the engine runtime: see bindings.py there.

    `logprobs` 0 means none here (SamplingParams._get_output_config); 1 gives the chosen token's.
    """
    sampling = request.sampling
    arguments: dict[str, Any] = {"top_k": 1}
    if not sampling.is_greedy:
        arguments = {
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "temperature": sampling.temperature,
            "min_p": sampling.min_p or None,
        }
    for name in _PENALTIES:
        value = getattr(sampling, name)
        arguments[name] = None if value == getattr(_NEUTRAL, name) else value
    arguments["min_tokens"] = sampling.min_tokens if request.stop_token_ids else 0
    arguments["logprobs"] = 1 if request.return_logprobs else None
    return arguments


def _of_1_3(request: GenerationRequest) -> dict[str, Any]:
    """Returns what TorchSampler needs.

    Every field that generation_config.json may have is set, since upstream fills unset ones from there
    (SamplingParams._apply_generation_config_defaults). Presence and frequency penalties don't count the prompt.
    """
    sampling = request.sampling
    has_penalty = sampling.presence_penalty or sampling.frequency_penalty
    return {
        "top_k": 1 if sampling.is_greedy else sampling.top_k,
        "top_p": 1.0 if sampling.is_greedy else sampling.top_p,
        "temperature": 1.0 if sampling.is_greedy else sampling.temperature,
        "min_p": 0.0 if sampling.is_greedy else sampling.min_p,
        **{name: getattr(sampling, name) for name in _PENALTIES},
        "prompt_ignore_length": len(request.prompt_ids) if has_penalty else None,
        "logprobs": request.num_top_logprobs if request.return_logprobs else None,
        "prompt_logprobs": request.num_top_logprobs if request.return_prompt_logprobs else None,
    }
