"""Parses and validates the bodies of requests, for the schema of each operation."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from frontend.request.body_limits import BodyClock, BodyShare
from frontend.request.errors import Detail, RequestInvalidError
from frontend.request.exact_integers import with_exact_integers
from frontend.request.generation_fields import GenerationFields, StreamOptions
from frontend.request.unsupported_fields import STREAM_OPTIONS_NO_OP_VALUES, UnsupportedFields, is_no_op_stream_option
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

MAX_DEPTH = 64
_MAX_NAME_CHARACTERS = 64  # of a field name that an error repeats
_STREAM_FIELDS = frozenset(StreamOptions.model_fields)

RequestT = TypeVar("RequestT", bound=GenerationFields)


@dataclass(frozen=True)
class RequestForm(Generic[RequestT]):
    """The requests of one operation: their schema, the fields that it does not implement, and its own rules.

    `check_size` refuses a document of too many items before any of them is parsed. `check` has the rules that span
    several fields of this operation alone. Both get the server's limit of choices, and raise PipelineError (400).
    `unknown_below` returns the names of unknown fields below the first level, which are ignored.
    """

    schema: type[RequestT]
    noun: str  # of one request, for messages
    unsupported: UnsupportedFields
    check_size: Callable[[Mapping[str, Any], int], None]
    check: Callable[[RequestT], None]
    unknown_below: Callable[[Mapping[str, Any]], Sequence[str]] = lambda document: ()

    @cached_property
    def fields(self) -> frozenset[str]:
        """The names of the fields that are implemented."""
        return frozenset(self.schema.model_fields)


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


def validate(
    form: RequestForm[RequestT], document: Mapping[str, Any], *, max_choices: int, is_strict: bool
) -> tuple[RequestT, int]:
    """The request and the number of unknown fields that were ignored. Raises PipelineError (400) if it is invalid."""
    unknown = _check_names(form, document, is_strict)
    form.check_size(document, max_choices)
    try:
        request = form.schema.model_validate(_without_nulls(form, document))
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_input=False)) from None  # the cause contains the prompt
    form.check(request)
    _check_together(request)
    if request.choice_count > max_choices:
        raise too_many_choices(request.choices_param, request.choice_count, max_choices)
    return request, unknown


def _without_nulls(form: RequestForm[RequestT], document: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in document.items() if value is not None and name in form.fields}
    options = fields.get("stream_options")
    if isinstance(options, dict):
        fields["stream_options"] = {name: value for name, value in options.items() if value is not None}
    return fields


def _check_names(form: RequestForm[RequestT], document: Mapping[str, Any], is_strict: bool) -> int:
    """Counts unknown fields. Raises PipelineError (400) for fields of OpenAI or vLLM with an unsupported value."""
    unknown = []
    for name, value in document.items():
        if name in form.fields:
            continue
        if not form.unsupported.is_known(name):
            unknown.append(name)
        elif not form.unsupported.is_no_op(name, value):
            raise _unsupported(form, name)
    unknown += _check_stream_options(form, document.get("stream_options"))
    unknown += form.unknown_below(document)
    if unknown and is_strict:
        name = unknown[0][:_MAX_NAME_CHARACTERS]
        raise one_error(ErrorCode.UNSUPPORTED_PARAMETER, name, f"{name} is not a field of {form.noun}.")
    return len(unknown)


def _check_stream_options(form: RequestForm[RequestT], options: Any) -> list[str]:
    """The names of unknown options that are off. Raises PipelineError (400) for others, whatever STRICT_FIELDS is.

    A wrong type is left to validation.
    """
    if not isinstance(options, dict):
        return []
    unknown = []
    for name, value in options.items():
        if name in STREAM_OPTIONS_NO_OP_VALUES:
            if not is_no_op_stream_option(name, value):
                raise _unsupported(form, f"stream_options.{name}")
        elif name not in _STREAM_FIELDS:
            if value is not None and value is not False:  # every option changes the stream
                raise _unsupported(form, f"stream_options.{name}")
            unknown.append(f"stream_options.{name}")
    return unknown


def _unsupported(form: RequestForm[RequestT], name: str) -> PipelineError:
    name = name[:_MAX_NAME_CHARACTERS]
    instead = form.unsupported.instead.get(name)
    advice = f"Use {instead} instead" if instead else f"Omit {name}"
    return one_error(ErrorCode.UNSUPPORTED_PARAMETER, name, f"This value of {name} is not supported. {advice}.")


def _check_together(request: GenerationFields) -> None:
    """The rules that span several of the fields that all operations have."""
    if request.stream_options is not None and not request.stream:
        raise one_error(
            ErrorCode.VALUE_OUT_OF_RANGE, "stream_options", "stream_options is only allowed with `stream: true`."
        )
    if request.token_limit is not None and (request.min_tokens or 0) > request.token_limit:
        message = f"min_tokens must be at most {request.token_limit_name}, which is {request.token_limit}."
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, "min_tokens", message)
    if request.truncate_prompt_tokens == 0:
        message = "truncate_prompt_tokens must be at least 1, or -1 for the room that the context leaves."
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, "truncate_prompt_tokens", message)
    if len(guides := list(request.guides)) > 1:
        message = f"{guides[1]} is not supported with {guides[0]}. Request one kind of structured output."
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, guides[1], message)


def too_many_choices(param: str, choices: int, max_choices: int) -> PipelineError:
    """The error of a request with more choices than the server allows."""
    message = f"This request has {choices} choices (prompts times n or best_of). At most {max_choices} are allowed."
    return one_error(ErrorCode.VALUE_OUT_OF_RANGE, param, message)


def one_error(code: ErrorCode, param: str, message: str) -> PipelineError:
    """The error of a request that violates one rule."""
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
    if "path" in context:  # below the field, such as [2].content
        return f"{path}{context['path']}"
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
