"""Executor capabilities beyond common sampling. Requests are checked against them, and /models lists them.

Extensions of SamplingParams come from the table of request fields (fields.py), those of GenerationRequest from
`REQUEST_EXTENSIONS` here. Some fields need no entry because ignoring them is correct: `stop_token_sequences` is a hint,
`cache_salt` separates only engines that share KV cache between requests, `tenant` and `tenant_share` only those with a
queue of their own, `guide_address` comes with a guide, and `trace` is decode's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.protocol.fields import FIELDS, MAX_LOGPROBS, SAMPLING_EXTENSIONS
from llm_pipeline.protocol.messages import GUIDE_PARAM, GenerationRequest, GuideType, SamplingParams


@dataclass(frozen=True)
class Capabilities:
    """The extensions that one executor honors.

    `sampling` are names of SAMPLING_EXTENSIONS. `logprobs` is the largest number of most likely tokens per position; 0
    means the chosen token's logprob only, None no logprobs at all.
    """

    executor: str
    sampling: tuple[str, ...] = ()
    priority: bool = False
    time_limit: bool = False
    logprobs: int | None = None
    prompt_logprobs: bool = False  # `echo` with `logprobs`
    guides: tuple[GuideType, ...] = ()
    lora: bool = False  # LoRA adapters, as models of their own

    def as_document(self) -> dict[str, Any]:
        """The JSON form in /models: a boolean for each extension of sampling."""
        fields = asdict(self)
        sampling = fields.pop("sampling")
        executor = fields.pop("executor")
        return {"executor": executor, **{name: name in sampling for name in SAMPLING_EXTENSIONS}, **fields}


def _honored_by(executor: ExecutorName) -> tuple[str, ...]:
    return tuple(field.name for field in FIELDS if field.executors is not None and executor in field.executors)


_CPU = Capabilities(
    "cpu",
    sampling=_honored_by("cpu"),
    priority=True,
    logprobs=MAX_LOGPROBS,
    prompt_logprobs=True,
    guides=tuple(GuideType),
)
# TensorRT-LLM returns the logprob of the chosen token only. Others would need each step's logits of the whole
# vocabulary, and those of a prompt need an engine that was built to keep them.
_TENSORRT_LLM = Capabilities(
    "tensorrt_llm",
    sampling=_honored_by("tensorrt_llm"),
    priority=True,
    time_limit=True,
    logprobs=0,
    guides=tuple(GuideType),
)
# `priority` and `time_limit` are honored in front of the LLM API. `min_tokens` is missing: TorchSampler holds back one
# end token, and counts the prompt's tokens as generated (_apply_min_length_penalty in
# tensorrt_llm/_torch/pyexecutor/sampler.py, NVIDIA/TensorRT-LLM at 28edbcdb).
_PYTORCH_1_3 = Capabilities(
    "tensorrt_llm_pytorch",
    sampling=_honored_by("tensorrt_llm_pytorch"),
    priority=True,
    time_limit=True,
    logprobs=MAX_LOGPROBS,
    prompt_logprobs=True,
    guides=tuple(GuideType),
    lora=True,
)
# TRTLLMSampler is the engine runtime's sampler, with its parameters and the chosen token's logprob alone
# (update_requests_single_beam_single_step in sampler.py). Prompt logprobs need not contain the prompt's own tokens
# (compute_logprobs in tensorrt_llm/executor/result.py, at 005bc848).
_PYTORCH_1_2 = replace(_PYTORCH_1_3, sampling=_honored_by("tensorrt_llm"), logprobs=0, prompt_logprobs=False)
_SCRIPTED = Capabilities("scripted", sampling=_honored_by("scripted"), priority=True)


class PyTorchProfile(str, Enum):
    """A line of TensorRT-LLM releases whose PyTorch runtime honors the same fields, named by its first release."""

    V1_2 = "1.2.1"  # TRTLLMSampler
    V1_3 = "1.3"  # TorchSampler, since it replaces the other

    def __str__(self) -> str:
        return self.value


PYTORCH_CAPABILITIES = {PyTorchProfile.V1_2: _PYTORCH_1_2, PyTorchProfile.V1_3: _PYTORCH_1_3}

CAPABILITIES: dict[ExecutorName, Capabilities] = {
    "cpu": _CPU,
    "tensorrt_llm": _TENSORRT_LLM,
    "tensorrt_llm_pytorch": PYTORCH_CAPABILITIES[PyTorchProfile.V1_3],
    "scripted": _SCRIPTED,
}
"""Of each executor; for `tensorrt_llm_pytorch`, those of the newest profile (runtime/settings.py: capabilities_of)."""


def without_guides(capabilities: Capabilities) -> Capabilities:
    """The same for an executor whose guided decoding is off."""
    return replace(capabilities, guides=())


@dataclass(frozen=True)
class Extension:
    """A field that not every executor honors: clients' name for it, and whether a request needs more than there is."""

    param: str
    exceeds: Callable[[GenerationRequest, Capabilities], bool]


REQUEST_EXTENSIONS: dict[str, Extension] = {
    "return_logprobs": Extension("logprobs", lambda request, can: request.return_logprobs and can.logprobs is None),
    "num_top_logprobs": Extension("logprobs", lambda request, can: request.num_top_logprobs > (can.logprobs or 0)),
    "return_prompt_logprobs": Extension(
        "echo", lambda request, can: request.return_prompt_logprobs and not can.prompt_logprobs
    ),
    "guide": Extension(
        GUIDE_PARAM, lambda request, can: request.guide is not None and request.guide.type not in can.guides
    ),
    "urgency": Extension("priority", lambda request, can: request.urgency != 0.5 and not can.priority),
    "adapter": Extension("model", lambda request, can: request.adapter is not None and not can.lora),
    "time_limit_s": Extension(
        "time_limit_s", lambda request, can: request.time_limit_s is not None and not can.time_limit
    ),
}

_NEUTRAL = SamplingParams()


def check_supported(request: GenerationRequest, capabilities: Capabilities) -> None:
    """Raises PipelineError (400), with the client's name of the field, if the executor does not honor one."""
    for name in SAMPLING_EXTENSIONS:
        if name not in capabilities.sampling and getattr(request.sampling, name) != getattr(_NEUTRAL, name):
            raise _unsupported(name, name, capabilities)
    for name, extension in REQUEST_EXTENSIONS.items():
        if extension.exceeds(request, capabilities):
            raise _unsupported(name, extension.param, capabilities)


def _unsupported(name: str, param: str, capabilities: Capabilities) -> PipelineError:
    engine = f"this server's engine ({capabilities.executor})"
    messages = {
        "guide": f"This kind of structured output is not supported by {engine}. Omit it.",
        "adapter": f"LoRA adapters are not supported by {engine}. Use the base model's name.",
        "return_prompt_logprobs": f"Logprobs of prompts are not supported by {engine}. Omit echo or logprobs.",
    }
    message = messages.get(name, f"{param} is not supported by {engine}. Omit it.")
    if name == "num_top_logprobs" and capabilities.logprobs is not None:
        message = f"logprobs must be at most {capabilities.logprobs} with {engine}. Lower it."
    return PipelineError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=param)
