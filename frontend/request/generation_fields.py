"""The request fields that completions and chat share: types, defaults and descriptions.

Ranges come from protocol/fields.py. A field of one of them alone is in its own schema.

Nulls are removed before validation (null equals omitting the field), so a field here is None only if it was omitted.
Validators raise with one of our error codes as pydantic's error type; parsing.py turns them into the error body.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from frontend.request.logit_bias import LogitBias
from frontend.request.structured_output import (
    GuidedChoice,
    GuidedGrammar,
    GuidedJson,
    GuidedRegex,
    ResponseFormat,
    StructuredOutputs,
)
from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.fields import (
    INT32_MAX,
    MAX_STOP_TOKEN_IDS,
    TRUNCATION_SIDES,
    limits_of,
    range_of,
)
from llm_pipeline.protocol.messages import Guide

Prompt: TypeAlias = str | tuple[int, ...]
GUIDE_FIELDS = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)


def field_error(code: ErrorCode, message: str, index: int | None = None) -> PydanticCustomError:
    """The error of a value, or of item `index` of a list, for a validator to raise."""
    # Pydantic formats the message with the context, so that braces in it would need care: there are none.
    return PydanticCustomError(code.value, message, {} if index is None else {"index": index})


def _integer(value: Any) -> Any:
    """Accepts 16.0 for 16, because JSON has one type of number. A boolean is not a number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise field_error(ErrorCode.INVALID_TYPE, "must be an integer")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise field_error(ErrorCode.INVALID_TYPE, "must be a number")
    return float(value)


def _boolean(value: Any) -> Any:
    if not isinstance(value, bool):
        raise field_error(ErrorCode.INVALID_TYPE, "must be true or false")
    return value


def _string(value: Any) -> Any:
    if not isinstance(value, str):
        raise field_error(ErrorCode.INVALID_TYPE, "must be a string")
    return value


def token_id(value: Any, index: int | None) -> int:
    """A token id as an integer. Raises the field's error."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise field_error(ErrorCode.INVALID_TYPE, "must contain only integers if it is a list of token ids", index)
    return value


def _texts(field: str) -> PlainValidator:
    """Validates a list of strings, or one string, against the limits of a row in the table of fields."""
    limits = limits_of(field)
    return PlainValidator(lambda value: _short_texts(value, limits.max_count, limits.max_characters))


def _texts_schema(field: str) -> WithJsonSchema:
    limits = limits_of(field)
    text = {"type": "string", "minLength": 1, "maxLength": limits.max_characters}
    return WithJsonSchema({"anyOf": [text, {"type": "array", "items": text, "maxItems": limits.max_count}]})


def _short_texts(value: Any, max_count: int, max_characters: int) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise field_error(ErrorCode.INVALID_TYPE, "must be a string or a list of strings")
    if len(items) > max_count:
        raise field_error(ErrorCode.VALUE_OUT_OF_RANGE, f"must contain at most {max_count} strings")
    is_list = isinstance(value, list)
    return tuple(_short_text(item, index if is_list else None, max_characters) for index, item in enumerate(items))


def _short_text(value: Any, index: int | None, max_characters: int) -> str:
    if not isinstance(value, str):
        raise field_error(ErrorCode.INVALID_TYPE, "must be a string", index)
    if not value:
        raise field_error(ErrorCode.VALUE_OUT_OF_RANGE, "is empty. Omit it", index)
    if len(value) > max_characters:
        raise field_error(ErrorCode.VALUE_OUT_OF_RANGE, f"must have at most {max_characters} characters", index)
    return value


def _truncation_side(value: Any) -> str:
    if value not in TRUNCATION_SIDES:
        raise field_error(ErrorCode.VALUE_OUT_OF_RANGE, f"must be {' or '.join(TRUNCATION_SIDES)}")
    return str(value)


def _stop_token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise field_error(ErrorCode.INVALID_TYPE, "must be a list of token ids")
    if len(value) > MAX_STOP_TOKEN_IDS:
        raise field_error(ErrorCode.VALUE_OUT_OF_RANGE, f"must contain at most {MAX_STOP_TOKEN_IDS} ids")
    ids = tuple(token_id(item, index) for index, item in enumerate(value))
    if ids and (min(ids) < 0 or max(ids) > INT32_MAX):
        raise field_error(ErrorCode.VALUE_OUT_OF_RANGE, "contains a token id outside the vocabulary")
    return ids


STRING_SCHEMA = {"type": "string", "minLength": 1}
IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT32_MAX}, "minItems": 1}
_STOP_TOKEN_IDS_SCHEMA = {"type": "array", "items": IDS_SCHEMA["items"], "maxItems": MAX_STOP_TOKEN_IDS}
_INT64 = {"type": "integer", "format": "int64"}
_INT32 = {"type": "integer", "format": "int32"}
_DOUBLE = {"type": "number", "format": "double"}


def _in_range(field: str, number_format: dict[str, Any]) -> Any:
    """The range of a row in the table of fields, as a constraint that pydantic writes into the JSON Schema."""
    bounds = range_of(field)
    return Field(ge=bounds.low, le=bounds.high, json_schema_extra=number_format)


_AS_INTEGER, _AS_NUMBER = BeforeValidator(_integer), BeforeValidator(_number)

# Constraints stand inside the validators: pydantic writes them into the JSON Schema only from there.
Count = Annotated[int, Field(ge=1, le=INT32_MAX, json_schema_extra=_INT64), _AS_INTEGER]
MaxTokens = Annotated[int, _in_range("max_tokens", _INT64), _AS_INTEGER]
MinTokens = Annotated[int, _in_range("min_tokens", _INT64), _AS_INTEGER]
Priority = Annotated[int, _in_range("priority", _INT32), _AS_INTEGER]
TruncatePromptTokens = Annotated[int, _in_range("truncate_prompt_tokens", _INT64), _AS_INTEGER]
NumLogprobs = Annotated[int, _in_range("num_logprobs", _INT32), _AS_INTEGER]
TruncationSide = Annotated[str, PlainValidator(_truncation_side), WithJsonSchema({"enum": [*TRUNCATION_SIDES]})]
TopK = Annotated[int, _in_range("top_k", _INT64), _AS_INTEGER]
Seed = Annotated[int, _in_range("seed", _INT64), _AS_INTEGER]
TopP = Annotated[float, _in_range("top_p", _DOUBLE), _AS_NUMBER]
MinP = Annotated[float, _in_range("min_p", _DOUBLE), _AS_NUMBER]
Temperature = Annotated[float, _in_range("temperature", _DOUBLE), _AS_NUMBER]
PresencePenalty = Annotated[float, _in_range("presence_penalty", _DOUBLE), _AS_NUMBER]
FrequencyPenalty = Annotated[float, _in_range("frequency_penalty", _DOUBLE), _AS_NUMBER]
RepetitionPenalty = Annotated[float, _in_range("repetition_penalty", _DOUBLE), _AS_NUMBER]
Boolean = Annotated[bool, BeforeValidator(_boolean)]
String = Annotated[str, BeforeValidator(_string)]
Stops = Annotated[tuple[str, ...], _texts("stop"), _texts_schema("stop")]
BadWords = Annotated[tuple[str, ...], _texts("bad_words"), _texts_schema("bad_words")]
StopTokenIds = Annotated[tuple[int, ...], PlainValidator(_stop_token_ids), WithJsonSchema(_STOP_TOKEN_IDS_SCHEMA)]


def allow_null(schema: dict[str, Any]) -> None:
    """Adds null to the JSON Schema of optional fields: it equals omitting the field."""
    for name, field in schema["properties"].items():
        field.pop("title", None)
        if name not in schema.get("required", ()):
            outer = {key: field.pop(key) for key in ("description", "default") if key in field}
            choices = field.pop("anyOf", None) or [dict(field)]
            field.clear()
            choices = [choice for choice in choices if choice != {"type": "null"}]
            field.update(anyOf=[*choices, {"type": "null"}], **{k: v for k, v in outer.items() if v is not None})


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_extra=allow_null)

    include_usage: Boolean = Field(
        False,
        description="Send one more chunk before `[DONE]`, with `usage` and no choices; `usage` is null in all others",
    )
    continuous_usage_stats: Boolean = Field(
        False, description="Include the usage so far in each chunk; only with include_usage"
    )


class GenerationFields(BaseModel):
    """The fields that requests of every operation have. Names and meanings are those of OpenAI, then those of vLLM."""

    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_extra=allow_null)

    model: String = Field(description="The model to use for the completion: a name from /openai/v1/models")
    n: Count = Field(1, description="Number of choices to return for each prompt")
    max_tokens: MaxTokens | None = Field(
        None,
        description="The maximum number of tokens to generate; clamped to the room in the context. 0 is allowed with "
        "echo only and generates nothing",
    )
    max_completion_tokens: MaxTokens | None = Field(
        None, description="The newer name of max_tokens; takes precedence if both are set"
    )
    temperature: Temperature | None = Field(None, description="Sampling temperature; 0 is greedy. Default 1")
    top_p: TopP | None = Field(None, description="Nucleus sampling; 0 is greedy. Default 1")
    top_k: TopK | None = Field(
        None, description="Consider only the top K most likely tokens; 0 and -1 are off. Default off"
    )
    min_p: MinP | None = Field(
        None, description="Drop tokens less likely than this fraction of the most likely token. Default 0"
    )
    frequency_penalty: FrequencyPenalty | None = Field(
        None, description="Subtracted from a token's logit once per occurrence in the completion. Default 0"
    )
    presence_penalty: PresencePenalty | None = Field(
        None, description="Subtracted from a token's logit if it occurs in the completion. Default 0"
    )
    repetition_penalty: RepetitionPenalty | None = Field(
        None,
        description="Divides positive and multiplies negative logits of tokens in prompt and completion. Default 1",
    )
    logit_bias: LogitBias = Field((), description="Map of token id to the number added to its logit")
    bad_words: BadWords = Field((), description="Words that must not be generated, as they are or after a space")
    min_tokens: MinTokens | None = Field(
        None, description="Minimum number of tokens before an end token or a stop string may end the text. Default 0"
    )
    ignore_eos: Boolean = Field(False, description="Continue after the model's own end token")
    stop_token_ids: StopTokenIds = Field((), description="Additional tokens that end the text")
    truncate_prompt_tokens: TruncatePromptTokens | None = Field(
        None,
        description="Keep only this many tokens of the prompt, the last ones unless truncation_side is right; -1 keeps "
        "what leaves room for max_tokens",
    )
    truncation_side: TruncationSide | None = Field(
        None, description="The side where truncate_prompt_tokens drops tokens: `left` or `right`. Default left"
    )
    priority: Priority | None = Field(
        None, description="Priority of the request while it waits; lower goes first. Default 0"
    )
    response_format: ResponseFormat = Field(
        None, description="`json_object`, or `json_schema` with a schema that constrains the text"
    )
    structured_outputs: StructuredOutputs = Field(
        None,
        description="Constrains the text to one of `json` (a schema), `json_object`, `regex`, `choice`, `grammar`",
    )
    guided_json: GuidedJson = Field(None, description="The same as `structured_outputs.json`")
    guided_regex: GuidedRegex = Field(None, description="The same as `structured_outputs.regex`")
    guided_choice: GuidedChoice = Field(None, description="The same as `structured_outputs.choice`")
    guided_grammar: GuidedGrammar = Field(None, description="The same as `structured_outputs.grammar`: GBNF or Lark")
    user: String | None = Field(None, description="An end user's identifier; accepted, but neither stored nor logged")
    seed: Seed | None = Field(
        None, description="The same seed and parameters give the same text. Default: a new random seed"
    )
    stop: Stops = Field((), description="Up to 16 stop strings; matched on the generated text")
    include_stop_str_in_output: Boolean = Field(False, description="Include the stop string in the text")
    skip_special_tokens: Boolean = Field(True, description="Omit special tokens from the text; they count in usage")
    stream: Boolean = Field(False, description="Send the text as server-sent events while it is generated")
    stream_options: StreamOptions | None = Field(None, description="Options of a stream; only with `stream: true`")

    @property
    def choice_count(self) -> int:
        """Number of completions that the engine generates for this request."""
        return self.n

    @property
    def choices_param(self) -> str:
        """The field to lower if there are too many choices."""
        return "n"

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def has_continuous_usage(self) -> bool:
        """Whether each chunk of a stream has the usage so far: only with include_usage, as in vLLM."""
        return self.includes_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def token_limit_name(self) -> str:
        """The name of the field that limits the completion: the newer one takes precedence."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def token_limit(self) -> int | None:
        """The maximum number of tokens to generate, under either name."""
        limit: int | None = getattr(self, self.token_limit_name)
        return limit

    @property
    def guides(self) -> dict[str, Guide]:
        """The guides of structured output, by the name of the field that requests them."""
        guides = {name: getattr(self, name) for name in GUIDE_FIELDS}
        return {name: guide for name, guide in guides.items() if guide is not None}
