"""The tensors of every model, and how parameters, control messages and text chunks become arrays and back.

The inputs of the ensemble are those of the table of request fields (fields.py). `config.pbtxt` of each model follows
the `*_INPUTS` and `*_OUTPUTS` below: `python -m llm_pipeline.triton.config_pbtxt` writes it, tests/contract compares.

A send through the Python backend costs about 0.2 ms plus 0.03 ms for each output tensor (measured), so messages that
only our own stages read travel as one line of JSON (wire_json.py), and facts that only the end needs travel in the
last response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import orjson

from llm_pipeline.protocol.arrays import DType, TensorReader, TensorSpec, array, read_flag, read_text, read_value
from llm_pipeline.protocol.engine_metrics import EngineReport
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.field_kinds import NamedArrays, NumberField
from llm_pipeline.protocol.fields import FIELDS
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from llm_pipeline.protocol.model_info import ModelInfo


def _required(name: str, dtype: DType, dims: tuple[int, ...] = (1,)) -> TensorSpec:
    return TensorSpec(name, dtype, dims, optional=False)


# Inputs that NVIDIA's clients send and that change nothing, because the ensemble does it anyway.
_IGNORED_INPUTS = (
    TensorSpec("return_num_input_tokens", "BOOL"),  # always returned
    TensorSpec("return_num_output_tokens", "BOOL"),  # always returned
    TensorSpec("pad_id", "INT32"),  # nothing is padded
    TensorSpec("length_penalty", "FP32"),  # of beam search, which needs more than one beam
)
# Inputs of which only the value 1 is supported.
_SINGLE_COMPLETION_INPUTS = (TensorSpec("beam_width", "INT32"), TensorSpec("num_return_sequences", "INT32"))
# Fields under the tensor names of earlier releases.
_FORMER_FIELDS = tuple(
    former for field in FIELDS if isinstance(field, NumberField) and (former := field.under_former_name()) is not None
)

# Messages of a client that uses a channel (channel.py). They replace all other inputs.
BUNDLE = TensorSpec("bundle", "BYTES")  # JSON: requests whose tokens go to the client's channel
OPEN_CHANNEL = TensorSpec("open_channel", "BOOL")  # true: the responses of this request are the client's channel

ENSEMBLE_INPUTS = (
    *(spec for field in FIELDS for spec in field.tensors),
    *_IGNORED_INPUTS,
    *_SINGLE_COMPLETION_INPUTS,
    *(field.tensor for field in _FORMER_FIELDS),
    BUNDLE,
    OPEN_CHANNEL,
)

DESCRIBE = TensorSpec("describe", "BOOL")  # true: return the model info. Sent to preprocess alone, past the ensemble
DESCRIPTION = _required("description", "BYTES")  # JSON of ModelInfo
PREPROCESS_INPUTS = (*ENSEMBLE_INPUTS, DESCRIBE)

# preprocess -> decode: one line of JSON, because each tensor of a step costs as much as all of a request's fields.
REQUEST = TensorSpec("request", "BYTES")  # JSON of GenerationRequest
# Sent to decode alone, past the ensemble.
STOP = TensorSpec("stop", "BYTES")  # a request key: cancel that request
RENEW = TensorSpec("renew", "BYTES")  # a client id: renew its lease
RECEIVED = TensorSpec("received", "UINT64")  # with `renew`: number of bursts that the client has read from its channel
PULSE = TensorSpec("pulse", "BOOL")  # true: answer at once, with a PulseAnswer
# A request parameter, which Triton passes to every step of an ensemble: the client id (stages/decode/leases.py).
CLIENT_ID_PARAMETER = "owner"

PREPROCESS_OUTPUTS = (_required(REQUEST.name, REQUEST.dtype), DESCRIPTION)
DECODE_INPUTS = (REQUEST, STOP, RENEW, RECEIVED, PULSE)

# decode -> postprocess
CHUNK = _required("chunk", "BYTES")  # JSON of TokenChunk, without unset fields
DECODE_OUTPUTS = (CHUNK,)
POSTPROCESS_INPUTS = DECODE_OUTPUTS
EMPTY_CHUNK = b""  # sent to postprocess alone: answer at once, without outputs

# postprocess -> client. A response contains the outputs that apply to it.
TEXT_OUTPUT = _required("text_output", "BYTES")
NUM_OUTPUT_TOKENS = _required("num_output_tokens", "INT32")  # all so far
NUM_INPUT_TOKENS = _required("num_input_tokens", "INT32")  # on the first response and the last
TOKEN_IDS = _required("token_ids", "INT32", (-1,))  # with return_token_ids
PROMPT_TOKEN_IDS = _required("prompt_token_ids", "INT32", (-1,))  # with return_token_ids, on the first response
FINISH_REASON = _required("finish_reason", "BYTES")  # on the last response only
LOG_PROBS = _required("logprobs_json", "BYTES")  # OpenAI's logprobs object, with logprobs
OUTPUT_LOG_PROBS = _required("output_log_probs", "FP32", (-1, -1))  # [1, new tokens], with return_log_probs
CUM_LOG_PROBS = _required("cum_log_probs", "FP32", (-1,))  # [1], with the former, on the last response only
BURST = _required("burst", "BYTES")  # JSON of TextBurst; in the responses of a channel, which have no other output
POSTPROCESS_OUTPUTS = (
    TEXT_OUTPUT,
    NUM_OUTPUT_TOKENS,
    NUM_INPUT_TOKENS,
    TOKEN_IDS,
    PROMPT_TOKEN_IDS,
    FINISH_REASON,
    LOG_PROBS,
    OUTPUT_LOG_PROBS,
    CUM_LOG_PROBS,
    BURST,
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


def decode_model_of(postprocess: str) -> str:
    """The decode model of the ensemble that this postprocess model belongs to."""
    return postprocess.removesuffix(POSTPROCESS_MODEL) + DECODE_MODEL


# --- The parameters of a completion ----------------------------------------------------------------------------------

_values_of = attrgetter(*(field.name for field in FIELDS))
_ENCODERS = tuple((field.default, field.encode) for field in FIELDS)
# A current name comes after the former one, so that it wins if both were sent.
_DECODERS = tuple((field.tensor.name, field.name, field.decode) for field in (*_FORMER_FIELDS, *FIELDS))


def parameters_to_arrays(parameters: CompletionParameters) -> NamedArrays:
    """The ensemble inputs of one prompt, without unset fields and defaults: each tensor costs time."""
    arrays: NamedArrays = []
    for (default, encode), value in zip(_ENCODERS, _values_of(parameters), strict=True):
        if value is not default and value != default:
            encode(value, arrays)
    return arrays


def parameters_from_arrays(read: TensorReader, *, request_id: str, new_key: str) -> CompletionParameters:
    """The parameters that a client of the ensemble sent. `new_key` is used if it sent no request key of its own.

    Raises PipelineError (400) for malformed tensors, with the tensor's name.
    """
    for spec in _SINGLE_COMPLETION_INPUTS:
        _refuse_more_than_one(read, spec)
    values: dict[str, Any] = {}
    for tensor, name, decode in _DECODERS:
        if (sent := read(tensor)) is not None and (value := decode(sent, read)) is not None:
            values[name] = value
    if values.get("return_tokens_as_token_ids"):
        values["return_token_ids"] = True
    values["request_key"] = values.get("request_key") or new_key
    return CompletionParameters(request_id=request_id, **values)


def _refuse_more_than_one(read: TensorReader, spec: TensorSpec) -> None:
    value = read_value(read, spec)
    if value not in (None, 1):
        raise PipelineError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            f"{spec.name} is {value}. A request returns one completion. Send one request per completion.",
            param=spec.name,
        )


# --- Messages to one stage alone -------------------------------------------------------------------------------------


def cancel_arrays(key: str) -> NamedArrays:
    """The message to decode that cancels the request with this key."""
    return [(STOP, array(STOP, key))]


def cancelled_key(read: TensorReader) -> str | None:
    """The key of the request that a message to decode cancels; None for other messages."""
    return read_text(read, STOP)


def renewal_arrays(client_id: str, received: int | None = None) -> NamedArrays:
    """The message to decode that renews the lease of a client.

    `received` is the number of bursts that the client has read; None if it has no channel.
    """
    arrays = [(RENEW, array(RENEW, client_id))]
    if received is not None:
        arrays.append((RECEIVED, array(RECEIVED, received)))
    return arrays


def renewed_client(read: TensorReader) -> str | None:
    """The client whose lease a message to decode renews; None for other messages."""
    return read_text(read, RENEW)


def received_count(read: TensorReader) -> int | None:
    """The number of bursts that the client has read, in a message that renews its lease; None if it has no channel."""
    value = read_value(read, RECEIVED)
    return None if value is None else int(value)


def pulse_arrays() -> NamedArrays:
    """The message to decode that shows whether it and its engine work."""
    return [(PULSE, array(PULSE, True))]


def is_pulse(read: TensorReader) -> bool:
    """Whether a request to decode is a pulse."""
    return read_flag(read, PULSE, False)


@dataclass(frozen=True)
class PulseAnswer:
    """The answer to a pulse: the seconds that an engine with work has been without a step, and the engine's numbers.

    `stalled_s` is 0 if it is not known.
    """

    stalled_s: float
    report: EngineReport

    def to_arrays(self) -> NamedArrays:
        answer = {"stalled_s": round(self.stalled_s, 1), **self.report.to_columns()}
        return [(CHUNK, array(CHUNK, orjson.dumps(answer)))]

    @classmethod
    def from_raw(cls, raw: Sequence[bytes]) -> PulseAnswer:
        """The answer as it travels: one string after its length of 4 bytes.

        Raises ValueError, KeyError, TypeError or AttributeError if it is from another release.
        """
        answer = orjson.loads(raw[0][4:])
        return cls(float(answer["stalled_s"]), EngineReport.from_columns(answer))


def empty_chunk_arrays() -> NamedArrays:
    """The message to postprocess that shows whether it works."""
    return [(CHUNK, array(CHUNK, EMPTY_CHUNK))]


def opens_channel(read: TensorReader) -> bool:
    """Whether a request opens the channel of its client."""
    return read_flag(read, OPEN_CHANNEL, False)


def sent_bundle(read: TensorReader) -> bytes | None:
    """The JSON of a bundle of requests; None for a single request."""
    bundle: bytes | None = read_value(read, BUNDLE)
    return bundle


def describe_arrays() -> NamedArrays:
    """The message to preprocess that requests the model info."""
    return [(DESCRIBE, array(DESCRIBE, True))]


def is_describe_message(read: TensorReader) -> bool:
    return read_flag(read, DESCRIBE, False)


def model_info_to_arrays(info: ModelInfo) -> NamedArrays:
    return [(DESCRIPTION, array(DESCRIPTION, info.to_json()))]


def model_info_from_raw(names: Sequence[str], contents: Sequence[bytes]) -> ModelInfo | None:
    """The model info in a gRPC response; None if there is none, or if it is from another release."""
    try:
        return ModelInfo.from_json(dict(zip(names, contents, strict=True))[DESCRIPTION.name][4:])
    except (KeyError, TypeError, ValueError):
        return None


# --- Text chunks -----------------------------------------------------------------------------------------------------


def text_chunk_to_arrays(chunk: TextChunk) -> NamedArrays:
    """The ensemble's outputs for one chunk, without unset fields."""
    arrays = [
        (TEXT_OUTPUT, array(TEXT_OUTPUT, chunk.text)),
        (NUM_OUTPUT_TOKENS, array(NUM_OUTPUT_TOKENS, chunk.completion_tokens)),
    ]
    if chunk.prompt_tokens is not None:
        arrays.append((NUM_INPUT_TOKENS, array(NUM_INPUT_TOKENS, chunk.prompt_tokens)))
    if chunk.token_ids is not None:
        arrays.append((TOKEN_IDS, np.array(chunk.token_ids, dtype=np.int32).reshape(1, -1)))
    if chunk.prompt_token_ids is not None:
        arrays.append((PROMPT_TOKEN_IDS, np.array(chunk.prompt_token_ids, dtype=np.int32).reshape(1, -1)))
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
    ids, prompt_ids = fields.get("token_ids"), fields.get("prompt_token_ids")
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
        prompt_token_ids=None if prompt_ids is None else tuple(memoryview(prompt_ids).cast("i")),
    )
