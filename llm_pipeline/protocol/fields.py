"""The table of request fields: each sampling and text field once, with its tensor, range, default and executors.

The ensemble's inputs, the wire codec (tensors.py), the HTTP schema (frontend/request/schemas.py), the checks of
preprocess (stages/validation.py), the defaults of deployment files and the capabilities follow from it.
docs/adding-a-field.md lists the few other edits that a new field needs.

A tensor has NVIDIA's name if the inflight_batcher_llm models have the field, and the HTTP field's name otherwise.
"""

from __future__ import annotations

from llm_pipeline.protocol.arrays import TensorSpec
from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.protocol.field_kinds import (
    BiasField,
    FlagField,
    GuideField,
    IdsField,
    NumberField,
    Range,
    RequestField,
    TextField,
    TextsField,
)

INT32_MAX = 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_LOGPROBS = 20  # most likely tokens per position
MAX_BIAS = 100.0  # absolute value for one token
MAX_BIASED_TOKENS = 1024
TRUNCATION_SIDES = ("left", "right")
MAX_TENANT_CHARACTERS = 128
MAX_TENANT_SHARE = 100
MAX_GUIDE_CHARACTERS = 64 * 1024  # of a JSON schema, a regular expression or a grammar
MAX_GUIDE_RULES = 512  # of a grammar; definitions that a JSON schema refers to
MAX_CHOICES_OF_GUIDE = 1024

_PROBABILITY = Range(0, 1)
_PENALTY = Range(-2.0, 2.0)
_FACTOR = Range(0.01, 100.0)  # far outside this range, logits overflow float32
_TOKEN_COUNT = Range(0, INT32_MAX)

_ENGINES: tuple[ExecutorName, ...] = ("cpu", "tensorrt_llm", "tensorrt_llm_pytorch")


def _as_int32(value: int) -> int:
    return min(value, INT32_MAX)  # a larger top_k means the same: the vocabulary is smaller


def _as_uint64(value: int) -> int:
    return value % 2**64


FIELDS: tuple[RequestField, ...] = (
    TextField("prompt_text", TensorSpec("text_input", "BYTES")),
    IdsField("token_ids", TensorSpec("input_ids", "INT32", (-1,))),
    NumberField("max_tokens", TensorSpec("max_tokens", "INT32"), range=_TOKEN_COUNT),
    NumberField("temperature", TensorSpec("temperature", "FP32"), range=Range(0, 2.0), neutral=1.0),
    # Preprocess has a check of its own: 0 and -1 are off, and there is no upper limit.
    NumberField("top_k", TensorSpec("top_k", "INT32"), range=Range(-1, INT64_MAX), to_wire=_as_int32),
    NumberField("top_p", TensorSpec("top_p", "FP32"), range=_PROBABILITY, neutral=1.0),
    NumberField("min_p", TensorSpec("min_p", "FP32"), range=_PROBABILITY, neutral=0.0),
    NumberField(
        "seed",
        TensorSpec("seed", "UINT64"),
        range=Range(INT64_MIN, INT64_MAX),
        to_wire=_as_uint64,
        former_name="random_seed",
    ),
    TextsField(
        "stop", TensorSpec("stop_words", "BYTES", (-1,)), max_count=MAX_STOP_STRINGS, max_characters=MAX_STOP_CHARACTERS
    ),
    FlagField("stream", TensorSpec("stream", "BOOL")),
    FlagField("include_stop_str_in_output", TensorSpec("include_stop_str_in_output", "BOOL")),
    FlagField("skip_special_tokens", TensorSpec("skip_special_tokens", "BOOL"), default=True),
    FlagField("return_token_ids", TensorSpec("return_token_ids", "BOOL")),
    FlagField("return_tokens_as_token_ids", TensorSpec("return_tokens_as_token_ids", "BOOL")),
    TextField("request_key", TensorSpec("request_key", "BYTES")),
    NumberField(
        "repetition_penalty",
        TensorSpec("repetition_penalty", "FP32"),
        range=_FACTOR,
        neutral=1.0,
        executors=_ENGINES,
    ),
    NumberField(
        "presence_penalty", TensorSpec("presence_penalty", "FP32"), range=_PENALTY, neutral=0.0, executors=_ENGINES
    ),
    NumberField(
        "frequency_penalty", TensorSpec("frequency_penalty", "FP32"), range=_PENALTY, neutral=0.0, executors=_ENGINES
    ),
    BiasField(
        "logit_bias",
        TensorSpec("logit_bias_ids", "INT32", (-1,)),
        TensorSpec("logit_bias_values", "FP32", (-1,)),
        executors=_ENGINES,
    ),
    # NVIDIA's form of logit_bias: a bias for every token of a text. Preprocess adds the two.
    BiasField(
        "bias_words",
        TensorSpec("embedding_bias_words", "BYTES", (-1,)),
        TensorSpec("embedding_bias_weights", "FP32", (-1,)),
    ),
    TextsField(
        "bad_words", TensorSpec("bad_words", "BYTES", (-1,)), max_count=64, max_characters=256, executors=_ENGINES
    ),
    NumberField(
        "min_tokens",
        TensorSpec("min_tokens", "INT32"),
        range=_TOKEN_COUNT,
        former_name="min_length",
        executors=("cpu", "tensorrt_llm", "scripted"),
    ),
    FlagField("ignore_eos", TensorSpec("ignore_eos", "BOOL")),
    NumberField("end_id", TensorSpec("end_id", "INT32")),
    IdsField("stop_token_ids", TensorSpec("stop_token_ids", "INT32", (-1,)), default=()),
    NumberField("truncate_prompt_tokens", TensorSpec("truncate_prompt_tokens", "INT32"), range=Range(-1, INT32_MAX)),
    TextField("truncation_side", TensorSpec("truncation_side", "BYTES")),
    FlagField("add_special_tokens", TensorSpec("add_special_tokens", "BOOL"), default=True),
    NumberField("priority", TensorSpec("priority", "INT32"), range=Range(-INT32_MAX, INT32_MAX)),
    NumberField("num_logprobs", TensorSpec("logprobs", "INT32"), range=Range(0, MAX_LOGPROBS), param="logprobs"),
    FlagField("return_logprob_values", TensorSpec("return_log_probs", "BOOL")),
    FlagField("echo", TensorSpec("exclude_input_in_output", "BOOL"), is_inverted=True),
    TextField("suffix", TensorSpec("suffix", "BYTES")),
    # Empty but for a chat whose text spells a token of the template (messages.py). Neither a token list nor an escape
    # in the text could say it: the first would need the tokenizer in the front end, the second a reserved character.
    IdsField("plain_spans", TensorSpec("plain_spans", "INT32", (-1,)), default=()),
    TextField("tenant", TensorSpec("tenant", "BYTES")),
    NumberField("tenant_share", TensorSpec("tenant_share", "INT32"), range=Range(1, MAX_TENANT_SHARE)),
    TextField("adapter", TensorSpec("lora_name", "BYTES")),
    GuideField(
        "guide",
        TensorSpec("guided_decoding_guide_type", "BYTES"),
        TensorSpec("guided_decoding_guide", "BYTES"),
    ),
)
FIELDS_BY_NAME = {field.name: field for field in FIELDS}

# Numbers that preprocess checks against their range and copies to SamplingParams.
SAMPLING_NUMBERS = tuple(field for field in FIELDS if isinstance(field, NumberField) and field.neutral is not None)

# Fields of SamplingParams that an executor may not support; each executor declares those that it honors.
SAMPLING_EXTENSIONS = tuple(field.name for field in FIELDS if field.executors is not None)


def range_of(name: str) -> Range:
    """The range of a number that clients may send."""
    field = FIELDS_BY_NAME[name]
    assert isinstance(field, NumberField), name
    assert field.range is not None, name
    return field.range


def limits_of(name: str) -> TextsField:
    """The row of a list of strings, for its limits."""
    field = FIELDS_BY_NAME[name]
    assert isinstance(field, TextsField), name
    return field
