"""What each executor can do beyond common sampling: the one table that refusals, answers and the list of models read.

A new extension of `Sampling` or `GenerationRequest` gets a row in `EXTENSIONS`, and an entry in the table for each
executor that has it. Two fields have none, because to leave them alone is to honour them: `stop_token_sequences` is a
hint, and `cache_salt` keeps apart what only an engine that shares its KV cache between requests could mix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.limits import MAX_LOG_PROBS
from llm_pipeline.protocol.messages import GUIDE_PARAM, GenerationRequest, GuideType, SamplingParams
from llm_pipeline.runtime.settings import PipelineSettings

ExecutorName: TypeAlias = Literal["cpu", "tensorrt_llm", "scripted"]


@dataclass(frozen=True)
class Capabilities:
    """What one executor does with a request.

    `logprobs` is how many most likely tokens it tells beside the chosen one's own log prob: 0 is that one alone,
    None no log probs at all.
    """

    executor: str
    repetition_penalty: bool = False
    presence_penalty: bool = False
    frequency_penalty: bool = False
    logit_bias: bool = False
    bad_words: bool = False
    min_tokens: bool = False
    priority: bool = False
    time_limit: bool = False
    logprobs: int | None = None
    prompt_logprobs: bool = False  # `echo` with `logprobs`
    guides: tuple[GuideType, ...] = ()  # what the text can be made to follow


_CPU = Capabilities(
    "cpu",
    repetition_penalty=True,
    presence_penalty=True,
    frequency_penalty=True,
    logit_bias=True,
    bad_words=True,
    min_tokens=True,
    priority=True,
    logprobs=MAX_LOG_PROBS,
    prompt_logprobs=True,
    guides=(GuideType.JSON, GuideType.JSON_SCHEMA, GuideType.REGEX, GuideType.EBNF_GRAMMAR),
)
# TensorRT-LLM gives the chosen token's log prob only. Others would need each step's logits of the whole vocabulary, and
# those of a prompt an engine that was built to keep them.
_TENSORRT_LLM = Capabilities(
    "tensorrt_llm",
    repetition_penalty=True,
    presence_penalty=True,
    frequency_penalty=True,
    logit_bias=True,
    bad_words=True,
    min_tokens=True,
    priority=True,
    time_limit=True,
    logprobs=0,
    guides=tuple(GuideType),
)
_SCRIPTED = Capabilities("scripted", min_tokens=True, priority=True)

CAPABILITIES: dict[ExecutorName, Capabilities] = {
    "cpu": _CPU,
    "tensorrt_llm": _TENSORRT_LLM,
    "scripted": _SCRIPTED,
}


def capabilities_of(settings: PipelineSettings) -> Capabilities:
    """The table's row for the executor that the settings name, without what they switch off."""
    found = CAPABILITIES[settings.executor]
    if found is _TENSORRT_LLM and settings.trtllm_guided_decoding == "off":
        return without_guides(found)
    return found


def without_guides(capabilities: Capabilities) -> Capabilities:
    """The same for an executor whose guided decoding is off."""
    return replace(capabilities, guides=())


@dataclass(frozen=True)
class Extension:
    """A field that not every executor has: the name that clients know it by, and when a request asks for too much."""

    param: str
    exceeds: Callable[[GenerationRequest, Capabilities], bool]


def _sampling_extension(name: str) -> Extension:
    neutral = getattr(_NEUTRAL, name)
    return Extension(name, lambda request, can: getattr(request.sampling, name) != neutral and not getattr(can, name))


_NEUTRAL = SamplingParams()
SAMPLING_EXTENSIONS: dict[str, Extension] = {
    name: _sampling_extension(name)
    for name in (
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "min_tokens",
        "logit_bias",
        "bad_words",
    )
}
REQUEST_EXTENSIONS: dict[str, Extension] = {
    "return_logprobs": Extension("logprobs", lambda request, can: request.return_logprobs and can.logprobs is None),
    "num_top_logprobs": Extension("logprobs", lambda request, can: request.num_top_logprobs > (can.logprobs or 0)),
    "return_prompt_logprobs": Extension(
        "echo", lambda request, can: request.return_prompt_logprobs and not can.prompt_logprobs
    ),
    "guide": Extension(
        GUIDE_PARAM, lambda request, can: request.guide is not None and request.guide.type not in can.guides
    ),
    "priority": Extension("priority", lambda request, can: request.priority != 0.5 and not can.priority),
    "time_limit_s": Extension(
        "time_limit_s", lambda request, can: request.time_limit_s is not None and not can.time_limit
    ),
}


def check_supported(request: GenerationRequest, capabilities: Capabilities) -> None:
    """PipelineError, by the client's name for it, for an extension that a request asks for and the executor lacks."""
    for name, extension in (*SAMPLING_EXTENSIONS.items(), *REQUEST_EXTENSIONS.items()):
        if extension.exceeds(request, capabilities):
            raise PipelineError(
                ErrorCode.UNSUPPORTED_PARAMETER, _refusal(name, extension.param, capabilities), param=extension.param
            )


def _refusal(name: str, param: str, capabilities: Capabilities) -> str:
    if name == "num_top_logprobs" and capabilities.logprobs is not None:
        return (
            f"This server's engine ({capabilities.executor}) gives log probs of at most {capabilities.logprobs} other "
            "tokens than the chosen one; ask for fewer with logprobs."
        )
    if name == "guide":
        return f"This server's engine ({capabilities.executor}) has no structured output of this kind. Leave it out."
    if name == "return_prompt_logprobs":
        return (
            f"This server's engine ({capabilities.executor}) gives no log probs of prompts: leave out echo or logprobs."
        )
    return f"{param} is not supported by this server's engine ({capabilities.executor}). Leave it out."
