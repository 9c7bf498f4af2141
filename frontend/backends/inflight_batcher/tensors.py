"""Tensors of NVIDIA's ensemble (inflight_batcher_llm, of TensorRT-LLM 1.x), and the fields that it has no input for.

Names, types and shapes are those of triton_backend/all_models/inflight_batcher_llm in NVIDIA/TensorRT-LLM; every array
has a leading batch dimension of 1. Its `ensemble` and its `tensorrt_llm_bls` have the same inputs and outputs.

The engine's defaults are traps: without top_k and top_p it is greedy, and its seed is 0 for all requests. So these are
always sent. stop_words only end the engine's work early: it compares tokens, and keeps them in the text.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from llm_pipeline.protocol.arrays import Array, TensorSpec, array
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.field_kinds import NumberField
from llm_pipeline.protocol.fields import FIELDS_BY_NAME, INT32_MAX, SAMPLING_EXTENSIONS
from llm_pipeline.protocol.messages import CompletionParameters

MAX_TOKENS = FIELDS_BY_NAME["max_tokens"].tensor
SEED = FIELDS_BY_NAME["seed"].tensor
STOP_WORDS = FIELDS_BY_NAME["stop"].tensor
STREAM = FIELDS_BY_NAME["stream"].tensor
TEMPERATURE = FIELDS_BY_NAME["temperature"].tensor
TEXT_INPUT = FIELDS_BY_NAME["prompt_text"].tensor
TOP_K = FIELDS_BY_NAME["top_k"].tensor
TOP_P = FIELDS_BY_NAME["top_p"].tensor
EXCLUDE_INPUT = TensorSpec("exclude_input_in_output", "BOOL")
RETURN_NUM_INPUT_TOKENS = TensorSpec("return_num_input_tokens", "BOOL")
RETURN_NUM_OUTPUT_TOKENS = TensorSpec("return_num_output_tokens", "BOOL")
LORA_TASK_ID = TensorSpec("lora_task_id", "UINT64")
END_ID = TensorSpec("end_id", "INT32")
GUIDE_TYPE = TensorSpec("guided_decoding_guide_type", "BYTES")
GUIDE = TensorSpec("guided_decoding_guide", "BYTES")
BIAS_WORDS = TensorSpec("embedding_bias_words", "BYTES", (-1,))
BIAS_WEIGHTS = TensorSpec("embedding_bias_weights", "FP32", (-1,))

# Numbers that not every executor honors: sent if this ensemble has an input of their name, and refused if it has none.
_SCALARS = {
    name: field.tensor for name in SAMPLING_EXTENSIONS if isinstance(field := FIELDS_BY_NAME[name], NumberField)
}
_BAD_WORDS = TensorSpec("bad_words", "BYTES", (-1,))

# Without these neither usage nor a finish reason is known; older versions of NVIDIA's repository do not have them.
REQUIRED_INPUTS = frozenset({TEXT_INPUT.name, MAX_TOKENS.name, RETURN_NUM_OUTPUT_TOKENS.name})
NUM_OUTPUT_TOKENS, NUM_INPUT_TOKENS, TEXT_OUTPUT = "num_output_tokens", "num_input_tokens", "text_output"

# A message that cancels the engine's request with the same request id. The first three inputs are required but unused.
_CANCEL_ARRAYS = (
    (TensorSpec("input_ids", "INT32", (-1,)), 0),
    (TensorSpec("input_lengths", "INT32"), 1),
    (TensorSpec("request_output_len", "INT32"), 1),
    (TensorSpec("stop", "BOOL"), True),
)

# Fields that are handled in the front end or here; all others in CompletionParameters must have a no-op value.
_HANDLED = {
    *("request_key", "request_id", "prompt_text", "token_ids", "max_tokens", "temperature", "top_p", "top_k", "seed"),
    *("stop", "include_stop_str_in_output", "stream", "bad_words", "bias_words", "guide", "ignore_eos", "end_id"),
    *("guide_param", "token_limit_param", "prompt_param"),
    *("tenant", "tenant_share"),  # set by the front end, for queues and caches that are not NVIDIA's
    "adapter",  # of our ensemble; NVIDIA's has lora_task_id
    *_SCALARS,
}
_NO_OP_VALUES: dict[str, tuple[Any, ...]] = {
    "min_p": (None, 0.0),
    "priority": (None, 0),
    "truncation_side": (None, "left"),
}
# Names that clients use for fields with another name here. Checked first, as return_tokens_as_token_ids implies
# return_token_ids.
_CLIENT_NAMES = {
    "return_tokens_as_token_ids": "return_tokens_as_token_ids",
    "num_logprobs": "logprobs",
    "return_logprob_values": "best_of",
}
_GUIDE_TYPES = {"json", "json_schema", "regex", "ebnf_grammar"}


def request_arrays(
    parameters: CompletionParameters, known_inputs: Collection[str], *, max_tokens: int, lora_task_id: int | None
) -> list[tuple[TensorSpec, Array]]:
    """The inputs for one prompt. Raises PipelineError (400) for a field that this ensemble has no input for."""
    _check_supported(parameters)
    is_greedy = parameters.temperature == 0 or parameters.top_p == 0 or parameters.top_k == 1
    top_k = max(parameters.top_k or 0, 0)
    optional = {name: getattr(parameters, name, None) for name in (*_SCALARS, "bad_words", "bias_words", "guide")}
    values: list[tuple[TensorSpec, Any, str]] = [
        (TEXT_INPUT, parameters.prompt_text, "prompt"),
        (MAX_TOKENS, max_tokens, "max_tokens"),
        (TOP_K, 1 if is_greedy else min(top_k, INT32_MAX), "top_k"),
        (TOP_P, 1.0 if is_greedy or parameters.top_p is None else parameters.top_p, "top_p"),
        (TEMPERATURE, 1.0 if is_greedy or parameters.temperature is None else parameters.temperature, "temperature"),
        (SEED, secrets.randbits(64) if parameters.seed is None else parameters.seed % 2**64, "seed"),
        (STREAM, parameters.stream, "stream"),
        (EXCLUDE_INPUT, True, "model"),
        (RETURN_NUM_INPUT_TOKENS, True, "model"),
        (RETURN_NUM_OUTPUT_TOKENS, True, "model"),
        (STOP_WORDS, parameters.stop or None, "stop"),
        (LORA_TASK_ID, lora_task_id, "model"),
        (_BAD_WORDS, optional["bad_words"] or None, "bad_words"),
        (END_ID, -1 if getattr(parameters, "ignore_eos", False) else getattr(parameters, "end_id", None), "ignore_eos"),
        *((spec, optional[name], name) for name, spec in _SCALARS.items()),
        *_guide_values(optional["guide"], parameters.guide_param),
        *_bias_values(optional["bias_words"]),
    ]
    sent = [(spec, value, param) for spec, value, param in values if value is not None]
    for spec, _, param in sent:
        if spec.name not in known_inputs:
            raise _unsupported(param)
    return [(spec, array(spec, value)) for spec, value, _ in sent]


def engine_cancel_arrays() -> list[tuple[TensorSpec, Array]]:
    """A cancellation for the request that has the request id of this message."""
    return [(spec, array(spec, value)) for spec, value in _CANCEL_ARRAYS]


def _guide_values(guide: Any, param: str) -> list[tuple[TensorSpec, Any, str]]:
    if guide is None:
        return []
    if str(guide.type) not in _GUIDE_TYPES:
        raise _unsupported(param)
    return [(GUIDE_TYPE, str(guide.type), param), (GUIDE, guide.source, param)]


def _bias_values(words: Any) -> list[tuple[TensorSpec, Any, str]]:
    if not words:
        return []
    texts, weights = zip(*words, strict=True)
    return [(BIAS_WORDS, list(texts), "logit_bias"), (BIAS_WEIGHTS, list(weights), "logit_bias")]


def _check_supported(parameters: CompletionParameters) -> None:
    if parameters.prompt_text is None:
        raise PipelineError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            "This model accepts prompts only as text, not as token ids. Send strings.",
            param="prompt",
        )
    defaults = {field.name: field.default for field in fields(parameters) if field.name not in _HANDLED}
    for name in (*_CLIENT_NAMES, *defaults):
        if getattr(parameters, name) not in _NO_OP_VALUES.get(name, (defaults[name],)):
            raise _unsupported(_CLIENT_NAMES.get(name, name))


def _unsupported(param: str) -> PipelineError:
    return PipelineError(
        ErrorCode.UNSUPPORTED_PARAMETER,
        f"{param} is not supported by this model: its Triton model has no such input. Omit {param}.",
        param=param,
    )
