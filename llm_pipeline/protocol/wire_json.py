"""The messages between our own stages as JSON: GenerationRequest to decode, TokenChunk to postprocess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from llm_pipeline.protocol.arrays import TensorReader, array, read_value
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.field_kinds import NamedArrays
from llm_pipeline.protocol.messages import (
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    TextOptions,
    TokenChunk,
)
from llm_pipeline.protocol.tensors import CHUNK, REQUEST

# Made once: making one costs more than a thousand uses.
GENERATION_REQUEST = TypeAdapter(GenerationRequest)
TEXT_OPTIONS = TypeAdapter(TextOptions)


def request_to_arrays(request: GenerationRequest) -> NamedArrays:
    """preprocess's output, which is decode's input."""
    return [(REQUEST, array(REQUEST, orjson.dumps(request)))]


def read_prepared(read: TensorReader) -> bytes:
    """The JSON that preprocess wrote. Raises PipelineError (400) if there is none."""
    sent: bytes | None = read_value(read, REQUEST)
    if sent is None:
        raise PipelineError(
            ErrorCode.MISSING_REQUIRED_PARAMETER, "decode accepts only requests from preprocess. Use the ensemble."
        )
    return sent


def request_from_json(sent: bytes) -> GenerationRequest:
    """The request that preprocess has validated. Raises PipelineError (400) for anything else."""
    try:
        return GENERATION_REQUEST.validate_json(sent)
    except ValidationError as error:
        message = "request is not in the form that preprocess writes. Send requests to the ensemble."
        raise PipelineError(ErrorCode.INVALID_TYPE, message, param=REQUEST.name) from error


def token_chunk_to_arrays(chunk: TokenChunk) -> NamedArrays:
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
    fields = orjson.loads(read_value(read, CHUNK))
    text, reason, error = fields.get("text_options"), fields.get("finish_reason"), fields.get("error")
    chunk = TokenChunk(
        key=fields["key"],
        index=fields["index"],
        token_ids=tuple(fields["token_ids"]),
        text_options=None if text is None else TEXT_OPTIONS.validate_python(text),
        finish_reason=None if reason is None else FinishReason(reason),
        error=None if error is None else PipelineError.from_wire(error) or internal_error(),
        ack_address=address if isinstance(address := fields.get("ack_address"), str) else None,
    )
    return _with_logprobs(chunk, fields) if not _LOGPROB_FIELDS.isdisjoint(fields) else chunk


_LOGPROB_FIELDS = {"logprobs", "top_logprobs", "prompt_logprobs"}


def _with_logprobs(chunk: TokenChunk, fields: Mapping[str, Any]) -> TokenChunk:
    prompt = fields.get("prompt_logprobs")
    return replace(
        chunk,
        logprobs=tuple(fields.get("logprobs", ())),
        top_logprobs=as_tuples(fields.get("top_logprobs", [])),
        prompt_logprobs=None if prompt is None else PromptLogprobs(tuple(prompt["values"]), as_tuples(prompt["tops"])),
    )


def as_tuples(value: Any) -> Any:
    """Lists of JSON as the tuples they were."""
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value
