"""The only place where tensor names, dtypes and shapes are written, and how messages become arrays and back.

Names are those of NVIDIA's inflight_batcher_llm models wherever they have one, and else those of the HTTP API's fields:
min_p, the text switches, log probs in OpenAI's form, the request key, the finish reason and the token ids are ours.
Every model has `max_batch_size` > 0, so each array here has a leading batch dimension of 1 on the wire. `config.pbtxt`
of each model is held against the `*_INPUTS` and `*_OUTPUTS` below by tests/contract.

A send through the Python backend costs about 0.2 ms plus 0.03 ms for each output tensor (measured), so what only our
own stages read travels as one line of JSON, and facts that only the end needs travel in the last response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import TypeAdapter, ValidationError

from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.limits import INT32_MAX
from llm_pipeline.protocol.messages import (
    CompletionParameters,
    FinishReason,
    GenerationRequest,
    Guide,
    GuideType,
    PromptLogprobs,
    TextChunk,
    TextOptions,
    TokenChunk,
)
from llm_pipeline.protocol.model_info import ModelInfo

# Readers of the messages that travel as JSON. Made once: making one costs more than a thousand uses.
_GENERATION_REQUEST = TypeAdapter(GenerationRequest)
_TEXT_OPTIONS = TypeAdapter(TextOptions)

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]

DType = Literal["BYTES", "INT32", "UINT64", "FP32", "BOOL"]
NUMPY_TYPES: dict[DType, Any] = {
    "BYTES": np.object_,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "FP32": np.float32,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model: `dims` without the batch dimension, -1 where the length is free."""

    name: str
    dtype: DType
    dims: tuple[int, ...] = (1,)
    optional: bool = True


def _required(name: str, dtype: DType, dims: tuple[int, ...] = (1,)) -> TensorSpec:
    return TensorSpec(name, dtype, dims, optional=False)


# What a client of the ensemble sends: the text or the ids of one prompt, and how to complete it.
TEXT_INPUT = TensorSpec("text_input", "BYTES")
INPUT_IDS = TensorSpec("input_ids", "INT32", (-1,))
MAX_TOKENS = TensorSpec("max_tokens", "INT32")
TEMPERATURE = TensorSpec("temperature", "FP32")
TOP_K = TensorSpec("top_k", "INT32")
TOP_P = TensorSpec("top_p", "FP32")
MIN_P = TensorSpec("min_p", "FP32")
SEED = TensorSpec("seed", "UINT64")
STOP_WORDS = TensorSpec("stop_words", "BYTES", (-1,))
STREAM = TensorSpec("stream", "BOOL")
INCLUDE_STOP = TensorSpec("include_stop_str_in_output", "BOOL")
SKIP_SPECIAL_TOKENS = TensorSpec("skip_special_tokens", "BOOL")
RETURN_TOKEN_IDS = TensorSpec("return_token_ids", "BOOL")
TOKENS_AS_IDS = TensorSpec("return_tokens_as_token_ids", "BOOL")  # how log probs name tokens
REQUEST_KEY = TensorSpec("request_key", "BYTES")
REPETITION_PENALTY = TensorSpec("repetition_penalty", "FP32")
PRESENCE_PENALTY = TensorSpec("presence_penalty", "FP32")
FREQUENCY_PENALTY = TensorSpec("frequency_penalty", "FP32")
LOGIT_BIAS_IDS = TensorSpec("logit_bias_ids", "INT32", (-1,))
LOGIT_BIAS_VALUES = TensorSpec("logit_bias_values", "FP32", (-1,))
EMBEDDING_BIAS_WORDS = TensorSpec("embedding_bias_words", "BYTES", (-1,))  # logit bias of every token of a text
EMBEDDING_BIAS_WEIGHTS = TensorSpec("embedding_bias_weights", "FP32", (-1,))
BAD_WORDS = TensorSpec("bad_words", "BYTES", (-1,))
MIN_TOKENS = TensorSpec("min_tokens", "INT32")
IGNORE_EOS = TensorSpec("ignore_eos", "BOOL")
END_ID = TensorSpec("end_id", "INT32")
STOP_TOKEN_IDS = TensorSpec("stop_token_ids", "INT32", (-1,))
TRUNCATE_PROMPT_TOKENS = TensorSpec("truncate_prompt_tokens", "INT32")
ADD_SPECIAL_TOKENS = TensorSpec("add_special_tokens", "BOOL")
PRIORITY = TensorSpec("priority", "INT32")
LOG_PROBS_COUNT = TensorSpec("logprobs", "INT32")
RETURN_LOG_PROBS = TensorSpec("return_log_probs", "BOOL")
EXCLUDE_INPUT = TensorSpec("exclude_input_in_output", "BOOL")  # true when it is left out; false is OpenAI's echo
SUFFIX = TensorSpec("suffix", "BYTES")
GUIDE_TYPE = TensorSpec("guided_decoding_guide_type", "BYTES")
GUIDE = TensorSpec("guided_decoding_guide", "BYTES")

# Names that NVIDIA's clients send and whose wish is granted anyway, or that earlier releases had.
RETURN_NUM_INPUT_TOKENS = TensorSpec("return_num_input_tokens", "BOOL")  # always returned
RETURN_NUM_OUTPUT_TOKENS = TensorSpec("return_num_output_tokens", "BOOL")  # always returned
PAD_ID = TensorSpec("pad_id", "INT32")  # nothing is padded
LENGTH_PENALTY = TensorSpec("length_penalty", "FP32")  # of beam search, which takes more than one beam
BEAM_WIDTH = TensorSpec("beam_width", "INT32")
NUM_RETURN_SEQUENCES = TensorSpec("num_return_sequences", "INT32")
MIN_LENGTH = TensorSpec("min_length", "INT32")  # min_tokens
RANDOM_SEED = TensorSpec("random_seed", "UINT64")  # seed
_ONE_ONLY = (BEAM_WIDTH, NUM_RETURN_SEQUENCES)

ENSEMBLE_INPUTS = (
    TEXT_INPUT,
    INPUT_IDS,
    MAX_TOKENS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    MIN_P,
    SEED,
    STOP_WORDS,
    STREAM,
    INCLUDE_STOP,
    SKIP_SPECIAL_TOKENS,
    RETURN_TOKEN_IDS,
    TOKENS_AS_IDS,
    REQUEST_KEY,
    REPETITION_PENALTY,
    PRESENCE_PENALTY,
    FREQUENCY_PENALTY,
    LOGIT_BIAS_IDS,
    LOGIT_BIAS_VALUES,
    EMBEDDING_BIAS_WORDS,
    EMBEDDING_BIAS_WEIGHTS,
    BAD_WORDS,
    MIN_TOKENS,
    IGNORE_EOS,
    END_ID,
    STOP_TOKEN_IDS,
    TRUNCATE_PROMPT_TOKENS,
    ADD_SPECIAL_TOKENS,
    PRIORITY,
    LOG_PROBS_COUNT,
    RETURN_LOG_PROBS,
    EXCLUDE_INPUT,
    SUFFIX,
    GUIDE_TYPE,
    GUIDE,
    RETURN_NUM_INPUT_TOKENS,
    RETURN_NUM_OUTPUT_TOKENS,
    PAD_ID,
    LENGTH_PENALTY,
    BEAM_WIDTH,
    NUM_RETURN_SEQUENCES,
    MIN_LENGTH,
    RANDOM_SEED,
)

DESCRIBE = TensorSpec("describe", "BOOL")  # true: only say what is served; sent to preprocess alone, past the ensemble
DESCRIPTION = _required("description", "BYTES")  # JSON of ModelInfo
PREPROCESS_INPUTS = (*ENSEMBLE_INPUTS, DESCRIBE)

# preprocess -> decode: one line of JSON, because each tensor of a step costs as much as all of a request's fields.
REQUEST = TensorSpec("request", "BYTES")  # JSON of GenerationRequest
# Sent to decode alone, past the ensemble.
STOP = TensorSpec("stop", "BYTES")  # a request key: end that request
RENEW = TensorSpec("renew", "BYTES")  # an owner's name: it lives
# A request parameter, which Triton hands to every step of an ensemble: whose request it is (see stages/leases.py).
OWNER_PARAMETER = "owner"

PREPROCESS_OUTPUTS = (_required(REQUEST.name, REQUEST.dtype), DESCRIPTION)
DECODE_INPUTS = (REQUEST, STOP, RENEW)

# decode -> postprocess
CHUNK = _required("chunk", "BYTES")  # JSON of TokenChunk, without what is not set
DECODE_OUTPUTS = (CHUNK,)
POSTPROCESS_INPUTS = DECODE_OUTPUTS

# postprocess -> client. A response holds those that have something to say.
TEXT_OUTPUT = _required("text_output", "BYTES")
NUM_OUTPUT_TOKENS = _required("num_output_tokens", "INT32")  # all so far
NUM_INPUT_TOKENS = _required("num_input_tokens", "INT32")  # on the first response and the last
TOKEN_IDS = _required("token_ids", "INT32", (-1,))  # when return_token_ids asked for them
FINISH_REASON = _required("finish_reason", "BYTES")  # on the last response only
LOG_PROBS = _required("logprobs_json", "BYTES")  # OpenAI's logprobs object, when logprobs asked for it
OUTPUT_LOG_PROBS = _required("output_log_probs", "FP32", (-1, -1))  # [1, new tokens], when return_log_probs asked
CUM_LOG_PROBS = _required("cum_log_probs", "FP32", (-1,))  # [1], with the former on the last response only
POSTPROCESS_OUTPUTS = (
    TEXT_OUTPUT,
    NUM_OUTPUT_TOKENS,
    NUM_INPUT_TOKENS,
    TOKEN_IDS,
    FINISH_REASON,
    LOG_PROBS,
    OUTPUT_LOG_PROBS,
    CUM_LOG_PROBS,
)

ENSEMBLE_OUTPUTS = POSTPROCESS_OUTPUTS

PREPROCESS_MODEL = "preprocess"
DECODE_MODEL = "decode"
POSTPROCESS_MODEL = "postprocess"
ENSEMBLE_MODEL = "ensemble"
STAGE_MODELS = (PREPROCESS_MODEL, DECODE_MODEL, POSTPROCESS_MODEL)


def stage_model(ensemble: str, stage: str) -> str:
    """The name of a stage's model: plain in the ensemble called `ensemble`, else `<ensemble>-<stage>`."""
    return stage if ensemble == ENSEMBLE_MODEL else f"{ensemble}-{stage}"


def decode_beside(postprocess: str) -> str:
    """The decode model of the ensemble that this postprocess model belongs to."""
    return postprocess.removesuffix(POSTPROCESS_MODEL) + DECODE_MODEL


class TensorReader(Protocol):
    """Gives one input of a Triton request as an array with its batch dimension, or None when it was not sent."""

    def __call__(self, name: str) -> Array | None: ...


def array(spec: TensorSpec, values: Any) -> Array:
    """`values` (a scalar or a flat sequence) as the array of one request: shape [1, n]."""
    if spec.dtype == "BYTES":
        items = [values] if isinstance(values, (str, bytes)) else values
        encoded = [item.encode() if isinstance(item, str) else item for item in items]
        return np.array(encoded, dtype=np.object_).reshape(1, -1)
    numbers: Array = np.asarray(values, dtype=NUMPY_TYPES[spec.dtype])
    return numbers.reshape(1, -1)


def _values(read: TensorReader, spec: TensorSpec) -> list[Any] | None:
    """All values of an optional tensor. An error when the tensor holds more than one request's batch."""
    found = read(spec.name)
    if found is None:
        return None
    if found.ndim > 1 and found.shape[0] != 1:
        raise PipelineError(
            ErrorCode.INVALID_TYPE,
            f"{spec.name} has a batch dimension of {found.shape[0]}; send one prompt per request.",
            param=spec.name,
        )
    values: list[Any] = found.reshape(-1).tolist()
    return values


def _value(read: TensorReader, spec: TensorSpec) -> Any:
    values = _values(read, spec)
    if values is None:
        return None
    if len(values) != 1:
        raise PipelineError(
            ErrorCode.INVALID_TYPE, f"{spec.name} holds {len(values)} values; it takes one.", param=spec.name
        )
    return values[0]


def _text(value: bytes, spec: TensorSpec) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise PipelineError(ErrorCode.INVALID_TYPE, f"{spec.name} is not valid UTF-8.", param=spec.name) from error


def _flag(read: TensorReader, spec: TensorSpec, default: bool) -> bool:
    value = _value(read, spec)
    return default if value is None else bool(value)


def parameters_to_arrays(parameters: CompletionParameters) -> list[tuple[TensorSpec, Array]]:
    """The ensemble inputs of one prompt, without what the client left out and without defaults: each costs time."""
    scalars = (
        (TEXT_INPUT, parameters.prompt_text),
        (INPUT_IDS, parameters.token_ids),
        (MAX_TOKENS, parameters.max_tokens),
        (TEMPERATURE, parameters.temperature),
        (TOP_K, None if parameters.top_k is None else min(parameters.top_k, INT32_MAX)),
        (TOP_P, parameters.top_p),
        (MIN_P, parameters.min_p),
        (SEED, None if parameters.seed is None else parameters.seed % 2**64),
        (STOP_WORDS, parameters.stop or None),
        (STREAM, parameters.stream or None),
        (INCLUDE_STOP, parameters.include_stop_str_in_output or None),
        (SKIP_SPECIAL_TOKENS, None if parameters.skip_special_tokens else False),
        (RETURN_TOKEN_IDS, parameters.return_token_ids or None),
        (TOKENS_AS_IDS, parameters.return_tokens_as_token_ids or None),
        (REQUEST_KEY, parameters.request_key),
        (REPETITION_PENALTY, parameters.repetition_penalty),
        (PRESENCE_PENALTY, parameters.presence_penalty),
        (FREQUENCY_PENALTY, parameters.frequency_penalty),
        (LOGIT_BIAS_IDS, [token_id for token_id, _ in parameters.logit_bias] or None),
        (LOGIT_BIAS_VALUES, [bias for _, bias in parameters.logit_bias] or None),
        (EMBEDDING_BIAS_WORDS, [word for word, _ in parameters.bias_words] or None),
        (EMBEDDING_BIAS_WEIGHTS, [bias for _, bias in parameters.bias_words] or None),
        (BAD_WORDS, parameters.bad_words or None),
        (MIN_TOKENS, parameters.min_tokens),
        (IGNORE_EOS, parameters.ignore_eos or None),
        (END_ID, parameters.end_id),
        (STOP_TOKEN_IDS, parameters.stop_token_ids or None),
        (TRUNCATE_PROMPT_TOKENS, parameters.truncate_prompt_tokens),
        (ADD_SPECIAL_TOKENS, None if parameters.add_special_tokens else False),
        (PRIORITY, parameters.priority),
        (LOG_PROBS_COUNT, parameters.num_logprobs),
        (RETURN_LOG_PROBS, parameters.return_logprob_values or None),
        (EXCLUDE_INPUT, False if parameters.echo else None),
        (SUFFIX, parameters.suffix),
        (GUIDE_TYPE, None if parameters.guide is None else parameters.guide.type.value),
        (GUIDE, None if parameters.guide is None else parameters.guide.source),
    )
    return [(spec, array(spec, value)) for spec, value in scalars if value is not None]


def parameters_from_arrays(read: TensorReader, *, request_id: str, new_key: str) -> CompletionParameters:
    """What a client of the ensemble asked for. `new_key` is used when it sent no request key of its own."""
    text = _value(read, TEXT_INPUT)
    token_ids = _values(read, INPUT_IDS)
    key = _value(read, REQUEST_KEY)
    for spec in _ONE_ONLY:
        _refuse_more_than_one(read, spec)
    return CompletionParameters(
        request_key=_text(key, REQUEST_KEY) if key else new_key,
        request_id=request_id,
        prompt_text=None if text is None else _text(text, TEXT_INPUT),
        token_ids=None if token_ids is None else tuple(token_ids),
        max_tokens=_value(read, MAX_TOKENS),
        temperature=_value(read, TEMPERATURE),
        top_p=_value(read, TOP_P),
        top_k=_value(read, TOP_K),
        min_p=_value(read, MIN_P),
        seed=_either(read, SEED, RANDOM_SEED),
        stop=_words(read, STOP_WORDS),
        include_stop_str_in_output=_flag(read, INCLUDE_STOP, False),
        skip_special_tokens=_flag(read, SKIP_SPECIAL_TOKENS, True),
        return_token_ids=_flag(read, RETURN_TOKEN_IDS, False) or _flag(read, TOKENS_AS_IDS, False),
        return_tokens_as_token_ids=_flag(read, TOKENS_AS_IDS, False),
        stream=_flag(read, STREAM, False),
        repetition_penalty=_value(read, REPETITION_PENALTY),
        presence_penalty=_value(read, PRESENCE_PENALTY),
        frequency_penalty=_value(read, FREQUENCY_PENALTY),
        logit_bias=_pairs(read, LOGIT_BIAS_IDS, LOGIT_BIAS_VALUES, _values(read, LOGIT_BIAS_IDS)),
        bias_words=_pairs(
            read, EMBEDDING_BIAS_WORDS, EMBEDDING_BIAS_WEIGHTS, _words(read, EMBEDDING_BIAS_WORDS) or None
        ),
        bad_words=_words(read, BAD_WORDS),
        min_tokens=_either(read, MIN_TOKENS, MIN_LENGTH),
        ignore_eos=_flag(read, IGNORE_EOS, False),
        end_id=_value(read, END_ID),
        stop_token_ids=tuple(_values(read, STOP_TOKEN_IDS) or ()),
        truncate_prompt_tokens=_value(read, TRUNCATE_PROMPT_TOKENS),
        add_special_tokens=_flag(read, ADD_SPECIAL_TOKENS, True),
        priority=_value(read, PRIORITY),
        num_logprobs=_value(read, LOG_PROBS_COUNT),
        return_logprob_values=_flag(read, RETURN_LOG_PROBS, False),
        echo=not _flag(read, EXCLUDE_INPUT, True),
        suffix=_optional_text(read, SUFFIX),
        guide=_guide(read),
    )


def _words(read: TensorReader, spec: TensorSpec) -> tuple[str, ...]:
    """NVIDIA's clients pad a list with one empty string when it has no word."""
    words = _values(read, spec)
    return () if words is None or words == [b""] else tuple(_text(word, spec) for word in words)


def _optional_text(read: TensorReader, spec: TensorSpec) -> str | None:
    value = _value(read, spec)
    return None if value is None else _text(value, spec)


def _either(read: TensorReader, spec: TensorSpec, former: TensorSpec) -> Any:
    """The value under its name, or under the one that earlier releases of NVIDIA's models had."""
    value = _value(read, spec)
    return _value(read, former) if value is None else value


def _pairs(
    read: TensorReader, keys: TensorSpec, weights: TensorSpec, found: Sequence[Any] | None
) -> tuple[tuple[Any, float], ...]:
    """Keys and their numbers, which come as two tensors of the same length."""
    numbers = _values(read, weights)
    if found is None:
        return ()  # NVIDIA's clients pad the numbers as they do the words
    if len(found) != len(numbers or ()):
        raise PipelineError(
            ErrorCode.INVALID_TYPE,
            f"{keys.name} holds {len(found)} values and {weights.name} {len(numbers or ())}; send as many of both.",
            param=weights.name,
        )
    return tuple(zip(found, numbers or (), strict=True))


def _refuse_more_than_one(read: TensorReader, spec: TensorSpec) -> None:
    value = _value(read, spec)
    if value not in (None, 1):
        raise PipelineError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            f"{spec.name} is {value}; a request makes one completion. Send more requests for more of them.",
            param=spec.name,
        )


def _guide(read: TensorReader) -> Guide | None:
    kind = _optional_text(read, GUIDE_TYPE)
    if not kind:
        return None
    try:
        return Guide(GuideType(kind), _optional_text(read, GUIDE))
    except ValueError:
        known = ", ".join(known.value for known in GuideType)
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE, f"{GUIDE_TYPE.name} is not known; there are: {known}.", param=GUIDE_TYPE.name
        ) from None


def request_to_arrays(request: GenerationRequest) -> list[tuple[TensorSpec, Array]]:
    """preprocess's output, which is decode's input."""
    return [(REQUEST, array(REQUEST, orjson.dumps(request)))]


def request_from_arrays(read: TensorReader) -> GenerationRequest:
    """decode's view of a request that preprocess has validated. PipelineError when it is none."""
    sent = _value(read, REQUEST)
    if sent is None:
        raise PipelineError(ErrorCode.MISSING_REQUIRED_PARAMETER, "decode takes requests from preprocess.")
    try:
        return _GENERATION_REQUEST.validate_json(sent)
    except ValidationError as error:
        message = "request is not what preprocess makes; send requests to the ensemble."
        raise PipelineError(ErrorCode.INVALID_TYPE, message, param=REQUEST.name) from error


def cancel_arrays(key: str) -> list[tuple[TensorSpec, Array]]:
    """The message to decode that ends the request with this key."""
    return [(STOP, array(STOP, key))]


def describe_arrays() -> list[tuple[TensorSpec, Array]]:
    """The question to preprocess what it serves."""
    return [(DESCRIBE, array(DESCRIBE, True))]


def is_describe_message(read: TensorReader) -> bool:
    return _flag(read, DESCRIBE, False)


def description_to_arrays(description: ModelInfo) -> list[tuple[TensorSpec, Array]]:
    return [(DESCRIPTION, array(DESCRIPTION, description.to_json()))]


def description_from_raw(names: Sequence[str], contents: Sequence[bytes]) -> ModelInfo | None:
    """The answer in a gRPC response; None when it is none, or that of another release."""
    try:
        return ModelInfo.from_json(dict(zip(names, contents, strict=True))[DESCRIPTION.name][4:])
    except (KeyError, TypeError, ValueError):
        return None


def cancelled_key(read: TensorReader) -> str | None:
    """The key of the request that a message to decode ends; None when it is no such message."""
    key = _value(read, STOP)
    return None if key is None else _text(key, STOP)


def renewal_arrays(owner: str) -> list[tuple[TensorSpec, Array]]:
    """The message to decode that renews the lease of an owner."""
    return [(RENEW, array(RENEW, owner))]


def renewed_owner(read: TensorReader) -> str | None:
    """The owner whose lease a message to decode renews; None when it is no such message."""
    owner = _value(read, RENEW)
    return None if owner is None else _text(owner, RENEW)


def token_chunk_to_arrays(chunk: TokenChunk) -> list[tuple[TensorSpec, Array]]:
    """decode's output."""
    fields: dict[str, Any] = {"key": chunk.key, "index": chunk.index, "token_ids": chunk.token_ids}
    if chunk.text_options is not None:
        fields["text_options"] = chunk.text_options
    if chunk.finish_reason is not None:
        fields["finish_reason"] = chunk.finish_reason.value
    if chunk.error is not None:
        fields["error"] = chunk.error.to_wire()
    if chunk.logprobs:
        fields["logprobs"] = chunk.logprobs
    if chunk.top_logprobs:
        fields["top_logprobs"] = chunk.top_logprobs
    if chunk.prompt_logprobs is not None:
        fields["prompt_logprobs"] = chunk.prompt_logprobs
    if chunk.ack_address is not None:
        fields["ack_address"] = chunk.ack_address
    return [(CHUNK, array(CHUNK, orjson.dumps(fields)))]


def token_chunk_from_arrays(read: TensorReader) -> TokenChunk:
    """postprocess's input."""
    fields = orjson.loads(_value(read, CHUNK))
    text, reason, error = fields.get("text_options"), fields.get("finish_reason"), fields.get("error")
    chunk = TokenChunk(
        key=fields["key"],
        index=fields["index"],
        token_ids=tuple(fields["token_ids"]),
        text_options=None if text is None else _TEXT_OPTIONS.validate_python(text),
        finish_reason=None if reason is None else FinishReason(reason),
        error=None if error is None else PipelineError.from_wire(error) or internal_error(),
        ack_address=address if isinstance(address := fields.get("ack_address"), str) else None,
    )
    return _with_log_probs(chunk, fields) if not _LOG_PROB_FIELDS.isdisjoint(fields) else chunk


_LOG_PROB_FIELDS = {"logprobs", "top_logprobs", "prompt_logprobs"}


def _with_log_probs(chunk: TokenChunk, fields: Mapping[str, Any]) -> TokenChunk:
    prompt = fields.get("prompt_logprobs")
    return replace(
        chunk,
        logprobs=tuple(fields.get("logprobs", ())),
        top_logprobs=_tuples(fields.get("top_logprobs", [])),
        prompt_logprobs=None if prompt is None else PromptLogprobs(tuple(prompt["values"]), _tuples(prompt["tops"])),
    )


def _tuples(value: Any) -> Any:
    """What JSON made lists of, as it was."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def text_chunk_to_arrays(chunk: TextChunk) -> list[tuple[TensorSpec, Array]]:
    """The ensemble's outputs for one chunk; those with nothing to say are left out."""
    arrays = [
        (TEXT_OUTPUT, array(TEXT_OUTPUT, chunk.text)),
        (NUM_OUTPUT_TOKENS, array(NUM_OUTPUT_TOKENS, chunk.completion_tokens)),
    ]
    if chunk.prompt_tokens is not None:
        arrays.append((NUM_INPUT_TOKENS, array(NUM_INPUT_TOKENS, chunk.prompt_tokens)))
    if chunk.token_ids is not None:
        arrays.append((TOKEN_IDS, np.array(chunk.token_ids, dtype=np.int32).reshape(1, -1)))
    if chunk.finish_reason is not None:
        arrays.append((FINISH_REASON, array(FINISH_REASON, chunk.finish_reason.value)))
    if chunk.logprobs_json is not None:
        arrays.append((LOG_PROBS, array(LOG_PROBS, chunk.logprobs_json)))
    if chunk.token_logprobs is not None:
        arrays.append((OUTPUT_LOG_PROBS, np.array(chunk.token_logprobs, dtype=np.float32).reshape(1, 1, -1)))
    if chunk.cumulative_logprob is not None:
        arrays.append((CUM_LOG_PROBS, array(CUM_LOG_PROBS, chunk.cumulative_logprob)))
    return arrays


def text_chunk_from_raw(names: list[str], contents: list[bytes]) -> TextChunk:
    """A TextChunk from a gRPC response's output names and raw contents, without numpy: this runs for every event.

    Raw contents are little-endian; a BYTES element is a uint32 length and its bytes (KServe v2, binary data).
    """
    fields = dict(zip(names, contents, strict=True))
    reason = fields.get("finish_reason")
    prompt = fields.get("num_input_tokens")
    ids = fields.get("token_ids")
    log_probs = fields.get("logprobs_json")
    values, total = fields.get("output_log_probs"), fields.get("cum_log_probs")
    return TextChunk(
        text=fields["text_output"][4:].decode(),
        completion_tokens=int.from_bytes(fields["num_output_tokens"], "little"),
        token_ids=None if ids is None else tuple(memoryview(ids).cast("i")),
        prompt_tokens=None if prompt is None else int.from_bytes(prompt, "little"),
        finish_reason=None if reason is None else FinishReason(reason[4:].decode()),
        logprobs_json=None if log_probs is None else log_probs[4:],
        token_logprobs=None if values is None else tuple(memoryview(values).cast("f")),
        cumulative_logprob=None if total is None else memoryview(total).cast("f")[0],
    )
