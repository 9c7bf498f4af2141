"""Parses and validates the body of a completion request."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from frontend.request import unsupported_fields
from frontend.request.body_limits import BodyClock, BodyShare
from frontend.request.errors import Detail, RequestInvalidError
from frontend.request.exact_integers import with_exact_integers
from frontend.request.schemas import CompletionRequest, StreamOptions
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

MAX_DEPTH = 64
_MAX_NAME_CHARACTERS = 64  # of a field name that an error repeats
_FIELDS = frozenset(CompletionRequest.model_fields)
_STREAM_FIELDS = frozenset(StreamOptions.model_fields)


async def read_body(request: Request, max_bytes: int, clock: BodyClock, share: BodyShare) -> bytes:
    """The raw JSON body, whose bytes `share` takes as they arrive.

    Raises PipelineError as soon as it is too long (413), of another type (415), late (408, 504), or beyond what the
    share allows (503).
    """
    _check_headers(request, max_bytes)
    parts, size, is_complete = [], 0, False
    while not is_complete:
        message = await clock.wait_for(request)
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        share.take(len(part))
        clock.received(len(part))
        parts.append(part)
        is_complete = not message.get("more_body", False)
    return b"".join(parts)


def _check_headers(request: Request, max_bytes: int) -> None:
    content_type = request.headers.get("content-type")
    if content_type is not None and content_type.split(";")[0].strip().lower() != "application/json":
        raise PipelineError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "Send the body as `Content-Type: application/json`.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise PipelineError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "Send the body without a Content-Encoding.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> PipelineError:
    return PipelineError(ErrorCode.REQUEST_TOO_LARGE, f"The body is larger than {max_bytes} bytes. Send a smaller one.")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; the last of equal keys wins. Raises PipelineError (invalid_json) if there is none.

    A byte order mark before it, as PowerShell writes it, is ignored (RFC 8259, section 8.1).
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    if not body.strip():
        raise PipelineError(ErrorCode.INVALID_JSON, "The body is empty. Send a JSON object.")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        problem = (
            "has a number beyond the range of doubles" if "infinity" in error.msg else "is not valid JSON in UTF-8"
        )
        message = f"The body {problem} (line {error.lineno}, column {error.colno})."
        raise PipelineError(ErrorCode.INVALID_JSON, message) from None  # the cause contains the whole body
    if not isinstance(document, dict):
        raise PipelineError(ErrorCode.INVALID_JSON, "The body is not a JSON object.")
    if _may_be_deep(body) and _is_too_deep(document):
        raise PipelineError(ErrorCode.INVALID_JSON, f"The body is nested more than {MAX_DEPTH} levels deep.")
    return with_exact_integers(document, body)


def _may_be_deep(body: bytes) -> bool:
    """A cheap test that avoids the walk for nearly every body."""
    return body.count(b"[") + body.count(b"{") > MAX_DEPTH


def _is_too_deep(document: Any) -> bool:
    """Walks level by level instead of recursively, because the client chooses the depth."""
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def validate(document: dict[str, Any], *, max_choices: int, is_strict: bool) -> tuple[CompletionRequest, int]:
    """The request and the number of unknown fields that were ignored. Raises PipelineError (400) if it is invalid."""
    unknown = _check_names(document, is_strict)
    _check_prompt_count(document.get("prompt"), max_choices)
    try:
        request = CompletionRequest.model_validate(_without_nulls(document))
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_input=False)) from None  # the cause contains the prompt
    _check_together(request, max_choices)
    return request, unknown


def _without_nulls(document: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in document.items() if value is not None and name in _FIELDS}
    options = fields.get("stream_options")
    if isinstance(options, dict):
        fields["stream_options"] = {name: value for name, value in options.items() if value is not None}
    return fields


def _check_names(document: Mapping[str, Any], is_strict: bool) -> int:
    """Counts unknown fields. Raises PipelineError (400) for fields of OpenAI or vLLM with an unsupported value."""
    unknown = []
    for name, value in document.items():
        if name in _FIELDS:
            continue
        if not unsupported_fields.is_known(name):
            unknown.append(name)
        elif not unsupported_fields.is_no_op(name, value):
            raise _unsupported(name)
    unknown += _check_stream_options(document.get("stream_options"))
    if unknown and is_strict:
        name = unknown[0][:_MAX_NAME_CHARACTERS]
        raise _one_error(ErrorCode.UNSUPPORTED_PARAMETER, name, f"{name} is not a field of a completion request.")
    return len(unknown)


def _check_stream_options(options: Any) -> list[str]:
    """The names of unknown options that are off. Raises PipelineError (400) for others, whatever STRICT_FIELDS is.

    A wrong type is left to validation.
    """
    if not isinstance(options, dict):
        return []
    unknown = []
    for name, value in options.items():
        if name in unsupported_fields.STREAM_OPTIONS_NO_OP_VALUES:
            if not unsupported_fields.is_no_op_stream_option(name, value):
                raise _unsupported(f"stream_options.{name}")
        elif name not in _STREAM_FIELDS:
            if value is not None and value is not False:  # every option changes the stream
                raise _unsupported(f"stream_options.{name}")
            unknown.append(f"stream_options.{name}")
    return unknown


def _unsupported(name: str) -> PipelineError:
    name = name[:_MAX_NAME_CHARACTERS]
    instead = unsupported_fields.INSTEAD.get(name)
    advice = f"Use {instead} instead" if instead else f"Omit {name}"
    return _one_error(ErrorCode.UNSUPPORTED_PARAMETER, name, f"This value of {name} is not supported. {advice}.")


def _check_together(request: CompletionRequest, max_choices: int) -> None:
    """The rules that span several fields."""
    if request.stream_options is not None and not request.stream:
        raise _one_error(
            ErrorCode.VALUE_OUT_OF_RANGE, "stream_options", "stream_options is only allowed with `stream: true`."
        )
    if request.token_limit == 0 and not request.echo:
        name = request.token_limit_name
        message = f"{name} must be at least 1. 0 is allowed with `echo: true` only."
        raise _one_error(ErrorCode.VALUE_OUT_OF_RANGE, name, message)
    if request.token_limit is not None and (request.min_tokens or 0) > request.token_limit:
        message = f"min_tokens must be at most {request.token_limit_name}, which is {request.token_limit}."
        raise _one_error(ErrorCode.VALUE_OUT_OF_RANGE, "min_tokens", message)
    if request.truncate_prompt_tokens == 0:
        message = "truncate_prompt_tokens must be at least 1, or -1 for the room that the context leaves."
        raise _one_error(ErrorCode.VALUE_OUT_OF_RANGE, "truncate_prompt_tokens", message)
    _check_candidates(request)
    if len(guides := list(request.guides)) > 1:
        message = f"{guides[1]} is not supported with {guides[0]}. Request one kind of structured output."
        raise _one_error(ErrorCode.VALUE_OUT_OF_RANGE, guides[1], message)
    choices = len(request.prompt) * request.candidates
    if choices > max_choices:
        raise _too_many_choices(_choices_param(request), choices, max_choices)


def _check_candidates(request: CompletionRequest) -> None:
    if request.candidates < request.n:
        raise _one_error(ErrorCode.VALUE_OUT_OF_RANGE, "best_of", f"best_of must be at least n, which is {request.n}.")
    if request.candidates > request.n and request.stream:
        message = "best_of greater than n is not supported with stream=true."
        raise _one_error(ErrorCode.VALUE_OUT_OF_RANGE, "best_of", message)


def _choices_param(request: CompletionRequest) -> str:
    if len(request.prompt) > 1:
        return "prompt"
    return "n" if request.best_of is None else "best_of"


def _check_prompt_count(prompt: Any, max_choices: int) -> None:
    """Rejects a million prompts before any of them is parsed, which would delay other requests."""
    if isinstance(prompt, list) and len(prompt) > max_choices and isinstance(prompt[0], (str, list)):
        raise _too_many_choices("prompt", len(prompt), max_choices)


def _too_many_choices(param: str, choices: int, max_choices: int) -> PipelineError:
    message = f"This request has {choices} choices (prompts times n or best_of). At most {max_choices} are allowed."
    return _one_error(ErrorCode.VALUE_OUT_OF_RANGE, param, message)


def _one_error(code: ErrorCode, param: str, message: str) -> PipelineError:
    return RequestInvalidError(code, message, param=param, details=[Detail(message, f"body.{param}")])


_CODES_OF_TYPES = {
    "missing": ErrorCode.MISSING_REQUIRED_PARAMETER,
    "greater_than_equal": ErrorCode.VALUE_OUT_OF_RANGE,
    "less_than_equal": ErrorCode.VALUE_OUT_OF_RANGE,
    "greater_than": ErrorCode.VALUE_OUT_OF_RANGE,
}


def _invalid(errors: Sequence[ErrorDetails]) -> PipelineError:
    """Pydantic's errors as one of ours; the first one gives the code."""
    rules = [(_code(error), _param(error), _message(error)) for error in errors]
    code, param, message = rules[0]
    details = [Detail(message, f"body.{param}") for _, param, message in rules]
    return RequestInvalidError(code, message, param=param, details=details)


def _code(error: ErrorDetails) -> ErrorCode:
    try:
        return ErrorCode(error["type"])
    except ValueError:
        return _CODES_OF_TYPES.get(error["type"], ErrorCode.INVALID_TYPE)


def _param(error: ErrorDetails) -> str:
    path, context = ".".join(str(part) for part in error["loc"]), error.get("ctx", {})
    if "key" in context:
        return f"{path}.{context['key'][:_MAX_NAME_CHARACTERS]}"
    return f"{path}[{context['index']}]" if "index" in context else path


def _message(error: ErrorDetails) -> str:
    param, context = _param(error), error.get("ctx", {})
    if error["type"] == "missing":
        return f"{param} is required."
    if error["type"] == "greater_than_equal":
        return f"{param} must be at least {_exact(context['ge'])}."
    if error["type"] == "less_than_equal":
        return f"{param} must be at most {_exact(context['le'])}."
    if error["type"] == "greater_than":
        return f"{param} must be greater than {_exact(context['gt'])}."
    if error["type"] == "model_type":
        return f"{param} must be an object."
    return f"{param} {error['msg']}."


def _exact(limit: float) -> str:
    return str(limit) if isinstance(limit, int) or not limit.is_integer() else str(int(limit))
