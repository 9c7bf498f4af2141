"""The completion request as the contract has it: types, ranges and defaults. Whatever else a body says is for body.py.

Nulls are removed before validation (null equals leaving a field out), so that no field here is None by request.
Validators raise with one of our error codes as pydantic's error type; `body.py` turns them into the error body.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from llm_pipeline.errors import ErrorCode
from llm_pipeline.limits import (
    INT32_MAX,
    INT64_MAX,
    INT64_MIN,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_TEMPERATURE,
)

Prompt: TypeAlias = str | tuple[int, ...]


def _error(code: ErrorCode, message: str, index: int | None = None) -> PydanticCustomError:
    # Pydantic formats the message with the context, so that braces in it would need care: there are none.
    return PydanticCustomError(code.value, message, {} if index is None else {"index": index})


def _integer(value: Any) -> Any:
    """JSON has one kind of number: 16.0 is the integer 16. A boolean is no number at all."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _error(ErrorCode.INVALID_TYPE, "must be an integer")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _error(ErrorCode.INVALID_TYPE, "must be a number")
    return float(value)


def _boolean(value: Any) -> Any:
    if not isinstance(value, bool):
        raise _error(ErrorCode.INVALID_TYPE, "must be true or false")
    return value


def _string(value: Any) -> Any:
    if not isinstance(value, str):
        raise _error(ErrorCode.INVALID_TYPE, "must be a string")
    return value


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """The four forms of a prompt as one: a tuple with an entry per prompt."""
    if isinstance(value, str):
        return (_text_prompt(value, None),)
    if not isinstance(value, list):
        raise _error(
            ErrorCode.INVALID_TYPE, "must be a string, a list of strings, a list of token ids, or a list of such lists"
        )
    if not value:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, "is an empty list; send at least one prompt")
    if isinstance(value[0], str):
        return tuple(_text_prompt(item, index) for index, item in enumerate(value))
    if isinstance(value[0], list):
        return tuple(_id_prompt(item, index) for index, item in enumerate(value))
    return (_id_prompt(value, None),)


def _text_prompt(value: Any, index: int | None) -> str:
    if not isinstance(value, str):
        raise _error(ErrorCode.INVALID_TYPE, "must be a string like the prompts before it", index)
    if not value:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, "is empty; send at least one character", index)
    return value


def _id_prompt(value: Any, index: int | None) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _error(ErrorCode.INVALID_TYPE, "must be a list of token ids like the prompts before it", index)
    if not value:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, "is an empty list; send at least one token id", index)
    if set(map(type, value)) != {int}:  # one pass in C: these lists are long
        value = [_token_id(item, index) for item in value]
    if min(value) < 0 or max(value) > INT32_MAX:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, "holds a token id outside the vocabulary", index)
    return tuple(value)


def _token_id(value: Any, index: int | None) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _error(ErrorCode.INVALID_TYPE, "must hold integers only, as a list of token ids", index)
    return value


def _stops(value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise _error(ErrorCode.INVALID_TYPE, "must be a string or a list of strings")
    if len(items) > MAX_STOP_STRINGS:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, f"must hold at most {MAX_STOP_STRINGS} strings")
    return tuple(_stop(item, None if isinstance(value, str) else index) for index, item in enumerate(items))


def _stop(value: Any, index: int | None) -> str:
    if not isinstance(value, str):
        raise _error(ErrorCode.INVALID_TYPE, "must be a string", index)
    if not value:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, "is empty; leave it out", index)
    if len(value) > MAX_STOP_CHARACTERS:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, f"must have at most {MAX_STOP_CHARACTERS} characters", index)
    return value


_STRING = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT32_MAX}, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        _STRING,
        {"type": "array", "items": _STRING, "minItems": 1},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1},
    ]
}
_STOP_STRING = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}
_STOP_SCHEMA = {"anyOf": [_STOP_STRING, {"type": "array", "items": _STOP_STRING, "maxItems": MAX_STOP_STRINGS}]}
_INT64 = {"type": "integer", "format": "int64"}
_DOUBLE = {"type": "number", "format": "double"}

# The ranges stand inside the validators: pydantic writes them into the JSON Schema only from there.
Count = Annotated[int, Field(ge=1, le=INT32_MAX, json_schema_extra=_INT64), BeforeValidator(_integer)]
TopK = Annotated[int, Field(ge=-1, le=INT64_MAX, json_schema_extra=_INT64), BeforeValidator(_integer)]
Seed = Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX, json_schema_extra=_INT64), BeforeValidator(_integer)]
Probability = Annotated[float, Field(ge=0, le=1, json_schema_extra=_DOUBLE), BeforeValidator(_number)]
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE, json_schema_extra=_DOUBLE), BeforeValidator(_number)]
Boolean = Annotated[bool, BeforeValidator(_boolean)]
String = Annotated[str, BeforeValidator(_string)]
Prompts = Annotated[tuple[Prompt, ...], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
Stops = Annotated[tuple[str, ...], PlainValidator(_stops), WithJsonSchema(_STOP_SCHEMA)]


def _allow_null(schema: dict[str, Any]) -> None:
    """Says in the JSON Schema that null equals leaving an optional field out."""
    for name, field in schema["properties"].items():
        field.pop("title", None)
        if name not in schema.get("required", ()):
            outer = {key: field.pop(key) for key in ("description", "default") if key in field}
            choices = field.pop("anyOf", None) or [dict(field)]
            field.clear()
            choices = [choice for choice in choices if choice != {"type": "null"}]
            field.update(anyOf=[*choices, {"type": "null"}], **{k: v for k, v in outer.items() if v is not None})


class StreamOptions(BaseModel):
    """What a stream carries beside the text."""

    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_extra=_allow_null)

    include_usage: Boolean = Field(
        False, description="Send one more chunk before `[DONE]`, with `usage` and no choices; `usage` is null on others"
    )
    continuous_usage_stats: Boolean = Field(False, description="Put the running usage of its choice on each chunk")


class CompletionRequest(BaseModel):
    """A request to complete one prompt or several."""

    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_extra=_allow_null)

    model: String = Field(description="The model to use for the completion: a name that /openai/v1/models lists")
    prompt: Prompts = Field(
        description="The prompt to generate completions for: a string or a list of token ids; "
        "a list of either makes one choice per prompt"
    )
    n: Count = Field(1, description="How many choices to make for each prompt")
    max_tokens: Count | None = Field(
        None, description="The maximum number of tokens to generate; clamped to the context's room"
    )
    max_completion_tokens: Count | None = Field(
        None, description="The same under its newer name; wins when both are given"
    )
    temperature: Temperature | None = Field(None, description="Sampling temperature; 0 is greedy. Default 1")
    top_p: Probability | None = Field(None, description="Nucleus sampling; 0 is greedy. Default 1")
    top_k: TopK | None = Field(
        None, description="Consider only the top K most likely tokens; 0 and -1 are off. Default off"
    )
    min_p: Probability | None = Field(
        None, description="Drop tokens less likely than this part of the most likely one. Default 0"
    )
    seed: Seed | None = Field(None, description="Same seed and parameters, same text. Default: a fresh random seed")
    stop: Stops = Field((), description="Up to 16 strings at which the text ends; matched on the generated text")
    include_stop_str_in_output: Boolean = Field(False, description="End the text after the stop string, not before it")
    skip_special_tokens: Boolean = Field(True, description="Leave special tokens out of the text; they count in usage")
    return_tokens_as_token_ids: Boolean = Field(
        False, description="Give the text as `token_id:<id>` for each token, and the ids as `token_ids`"
    )
    return_token_ids: Boolean = Field(False, description="Give the token ids of the text beside it, as `token_ids`")
    stream: Boolean = Field(False, description="Send the text as server-sent events while it is made")
    stream_options: StreamOptions | None = Field(None, description="Options of a stream; only with `stream: true`")

    @property
    def wants_token_ids(self) -> bool:
        """Whether choices carry `token_ids`."""
        return self.return_token_ids or self.return_tokens_as_token_ids
