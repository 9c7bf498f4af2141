"""Converts the request fields of structured output to a Guide.

`response_format` is OpenAI's field, `structured_outputs` vLLM's, and `guided_*` are vLLM's former ones. The form
and the size are checked here, so that a large guide goes no further; decode checks whether it can be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import orjson
from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.fields import MAX_CHOICES_OF_GUIDE, MAX_GUIDE_CHARACTERS
from llm_pipeline.protocol.messages import Guide, GuideType

_JSON_OBJECT_KEYS = frozenset({"type", "schema"})
_JSON_SCHEMA_KEYS = frozenset({"type", "json_schema"})
# `strict` changes nothing: a schema is always followed exactly. The others describe it.
_NAMED_SCHEMA_KEYS = frozenset({"schema", "name", "description", "strict"})
_MAX_NAME_CHARACTERS = 64  # of a key that an error repeats
_ANY_OBJECT = '{"type":"object"}'
_ESCAPES = str.maketrans({character: f"\\{character}" for character in "\\.+*?()|[]{}^$#&-~/"})


def _error(message: str, code: ErrorCode = ErrorCode.INVALID_TYPE) -> PydanticCustomError:
    return PydanticCustomError(code.value, message)


def _schema_guide(value: Any) -> Guide:
    if isinstance(value, str):
        return _guide(GuideType.JSON_SCHEMA, value)
    if isinstance(value, dict):
        try:
            return _guide(GuideType.JSON_SCHEMA, orjson.dumps(value).decode())
        except TypeError:  # orjson's limit of recursion; the value comes from JSON, so that its types are right
            raise _error("is nested too deeply", ErrorCode.VALUE_OUT_OF_RANGE) from None
    raise _error("must be a JSON schema: an object, or a string that contains one")


def _regex_guide(value: Any) -> Guide:
    return _guide(GuideType.REGEX, _string(value))


def _grammar_guide(value: Any) -> Guide:
    return _guide(GuideType.EBNF_GRAMMAR, _string(value))


def _guide(kind: GuideType, source: str) -> Guide:
    if len(source) > MAX_GUIDE_CHARACTERS:
        raise _too_long(len(source))
    return Guide(kind, source)


def _too_long(count: int) -> PydanticCustomError:
    message = f"has {count} characters; the limit is {MAX_GUIDE_CHARACTERS}"
    return _error(message, ErrorCode.VALUE_OUT_OF_RANGE)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise _error("must be a string")
    return value


def _choice_guide(value: Any) -> Guide:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _error("must be a list of strings")
    if not 1 <= len(value) <= MAX_CHOICES_OF_GUIDE or not all(value):
        message = f"must contain 1 to {MAX_CHOICES_OF_GUIDE} non-empty strings"
        raise _error(message, ErrorCode.VALUE_OUT_OF_RANGE)
    if (count := sum(map(len, value))) > MAX_GUIDE_CHARACTERS:
        raise _too_long(count)
    return _guide(GuideType.REGEX, "|".join(map(_escaped, value)))


def _escaped(text: str) -> str:
    """A regular expression that matches only `text`. The result of Python's re.escape is invalid in Rust's syntax."""
    return text.translate(_ESCAPES)


def _response_format(value: Any) -> Guide | None:
    if not isinstance(value, dict):
        raise _error("must be an object")
    kind = value.get("type")
    if kind == "text":
        _check_keys(value, frozenset({"type"}), "")
        return None
    if kind == "json_object":  # the schema is an extension of llama.cpp and Together
        _check_keys(value, _JSON_OBJECT_KEYS, "")
        schema = value.get("schema")
        return Guide(GuideType.JSON_SCHEMA, _ANY_OBJECT) if schema is None else _schema_guide(schema)
    if kind == "json_schema":
        _check_keys(value, _JSON_SCHEMA_KEYS, "")
        json_schema = value.get("json_schema")
        if not isinstance(json_schema, dict) or not isinstance(json_schema.get("schema"), dict):
            raise _error("of type json_schema must have an object json_schema with an object schema in it")
        _check_keys(json_schema, _NAMED_SCHEMA_KEYS, "json_schema.")
        return _schema_guide(json_schema["schema"])
    raise _error("must have the type text, json_object or json_schema", ErrorCode.VALUE_OUT_OF_RANGE)


def _check_keys(value: Mapping[str, Any], known: frozenset[str], prefix: str) -> None:
    """Refuses keys that are not read, whatever STRICT_FIELDS is: each may change the text."""
    for key, item in value.items():
        if key not in known and item is not None:
            name = f"{prefix}{key}"[:_MAX_NAME_CHARACTERS]
            raise _error(f"must not contain {name}, which is not supported. Omit it", ErrorCode.UNSUPPORTED_PARAMETER)


def _json_object(value: Any) -> Guide | None:
    if not isinstance(value, bool):
        raise _error("must have a boolean json_object")
    return Guide(GuideType.JSON_SCHEMA, _ANY_OBJECT) if value else None


_FORMS = {
    "json": _schema_guide,
    "json_object": _json_object,
    "regex": _regex_guide,
    "choice": _choice_guide,
    "grammar": _grammar_guide,
}


# vLLM's options of a guide (vllm/sampling_params.py, StructuredOutputsParams). Values that are off change nothing.
_OF_VLLM = frozenset(
    {"disable_any_whitespace", "disable_additional_properties", "whitespace_pattern", "structural_tag"}
)
_OUT_OF_RANGE = ErrorCode.VALUE_OUT_OF_RANGE


def _is_no_op(name: str, form: Any) -> bool:
    # A schema is always followed without further white space.
    return name in _OF_VLLM and (form is False or (name == "disable_any_whitespace" and form is True))


def _structured_outputs(value: Any) -> Guide | None:
    if not isinstance(value, dict):
        raise _error("must be an object")
    forms = {name: form for name, form in value.items() if form is not None and not _is_no_op(name, form)}
    for name in forms:
        if name not in _FORMS:
            message = f"must contain one of {', '.join(_FORMS)}; {name[:_MAX_NAME_CHARACTERS]} is not supported"
            raise _error(f"{message}. Omit it", ErrorCode.UNSUPPORTED_PARAMETER if name in _OF_VLLM else _OUT_OF_RANGE)
    if len(forms) > 1:
        raise _error(f"must contain one of {', '.join(_FORMS)}, and nothing else", _OUT_OF_RANGE)
    return next((_FORMS[name](form) for name, form in forms.items()), None)


_OBJECT = {"type": "object"}
_STRING = {"type": "string", "minLength": 1}
_JSON = {"anyOf": [_OBJECT, _STRING]}
_CHOICES = {"type": "array", "items": _STRING, "minItems": 1, "maxItems": MAX_CHOICES_OF_GUIDE}
_FORM_SCHEMAS: Mapping[str, Any] = {
    "json": _JSON,
    "json_object": {"type": "boolean"},
    "regex": _STRING,
    "choice": _CHOICES,
    "grammar": _STRING,
}
_RESPONSE_FORMAT_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "schema": _JSON,
        "json_schema": {"type": "object", "properties": {"schema": _OBJECT}, "required": ["schema"]},
    },
    "required": ["type"],
}
_STRUCTURED_OUTPUTS_SCHEMA = {
    "type": "object",
    "properties": dict(_FORM_SCHEMAS),
    "additionalProperties": False,
    "maxProperties": 1,
}

ResponseFormat: TypeAlias = Annotated[
    Guide | None, PlainValidator(_response_format), WithJsonSchema(_RESPONSE_FORMAT_SCHEMA)
]
StructuredOutputs: TypeAlias = Annotated[
    Guide | None, PlainValidator(_structured_outputs), WithJsonSchema(_STRUCTURED_OUTPUTS_SCHEMA)
]
GuidedJson: TypeAlias = Annotated[Guide | None, PlainValidator(_schema_guide), WithJsonSchema(_JSON)]
GuidedRegex: TypeAlias = Annotated[Guide | None, PlainValidator(_regex_guide), WithJsonSchema(_STRING)]
GuidedChoice: TypeAlias = Annotated[Guide | None, PlainValidator(_choice_guide), WithJsonSchema(_CHOICES)]
GuidedGrammar: TypeAlias = Annotated[Guide | None, PlainValidator(_grammar_guide), WithJsonSchema(_STRING)]
