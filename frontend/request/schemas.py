"""The completion request as the contract has it: types, ranges and defaults. Whatever else a body says is for body.py.

Nulls are removed before validation (null equals leaving a field out), so that no field here is None by request.
Validators raise with one of our error codes as pydantic's error type; `body.py` turns them into the error body.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from frontend.request.structured_output import (
    GuidedChoice,
    GuidedGrammar,
    GuidedJson,
    GuidedRegex,
    ResponseFormat,
    StructuredOutputs,
)
from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.limits import (
    INT32_MAX,
    INT64_MAX,
    INT64_MIN,
    MAX_BAD_WORD_CHARACTERS,
    MAX_BAD_WORDS,
    MAX_BIAS,
    MAX_BIASED_TOKENS,
    MAX_FACTOR,
    MAX_LOG_PROBS,
    MAX_PENALTY,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TEMPERATURE,
    MIN_FACTOR,
)
from llm_pipeline.protocol.messages import Guide

Prompt: TypeAlias = str | tuple[int, ...]
_INT32_DIGITS = 10
GUIDE_FIELDS = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)


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
    return _short_texts(value, MAX_STOP_STRINGS, MAX_STOP_CHARACTERS)


def _bad_words(value: Any) -> tuple[str, ...]:
    return _short_texts(value, MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS)


def _short_texts(value: Any, most: int, most_characters: int) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise _error(ErrorCode.INVALID_TYPE, "must be a string or a list of strings")
    if len(items) > most:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, f"must hold at most {most} strings")
    is_list = isinstance(value, list)
    return tuple(_short_text(item, index if is_list else None, most_characters) for index, item in enumerate(items))


def _short_text(value: Any, index: int | None, most_characters: int) -> str:
    if not isinstance(value, str):
        raise _error(ErrorCode.INVALID_TYPE, "must be a string", index)
    if not value:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, "is empty; leave it out", index)
    if len(value) > most_characters:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, f"must have at most {most_characters} characters", index)
    return value


def _stop_token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _error(ErrorCode.INVALID_TYPE, "must be a list of token ids")
    if len(value) > MAX_STOP_TOKEN_IDS:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, f"must hold at most {MAX_STOP_TOKEN_IDS} ids")
    ids = tuple(_token_id(item, index) for index, item in enumerate(value))
    if ids and (min(ids) < 0 or max(ids) > INT32_MAX):
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, "holds a token id outside the vocabulary")
    return ids


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """OpenAI's map of token id (a string, since JSON has no other keys) to what to add."""
    if not isinstance(value, dict):
        raise _error(ErrorCode.INVALID_TYPE, "must be an object of token ids and numbers")
    if len(value) > MAX_BIASED_TOKENS:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, f"must name at most {MAX_BIASED_TOKENS} tokens")
    return tuple((_bias_key(name), _bias(bias)) for name, bias in value.items())


def _bias_key(name: str) -> int:
    if not (name.isascii() and name.isdecimal() and len(name) <= _INT32_DIGITS):
        raise _error(ErrorCode.INVALID_TYPE, 'must have token ids as its keys, such as "50256"')
    token_id = int(name)
    if token_id > INT32_MAX:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, "names a token id outside the vocabulary")
    return token_id


def _bias(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _error(ErrorCode.INVALID_TYPE, "must have numbers as its values")
    if not -MAX_BIAS <= value <= MAX_BIAS:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, f"must have values from {-MAX_BIAS:g} to {MAX_BIAS:g}")
    return float(value)


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
_BAD_WORD = {"type": "string", "minLength": 1, "maxLength": MAX_BAD_WORD_CHARACTERS}
_BAD_WORDS_SCHEMA = {"anyOf": [_BAD_WORD, {"type": "array", "items": _BAD_WORD, "maxItems": MAX_BAD_WORDS}]}
_STOP_TOKEN_IDS_SCHEMA = {"type": "array", "items": _IDS["items"], "maxItems": MAX_STOP_TOKEN_IDS}
_LOGIT_BIAS_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
    "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
    "maxProperties": MAX_BIASED_TOKENS,
}
_INT64 = {"type": "integer", "format": "int64"}
_INT32 = {"type": "integer", "format": "int32"}
_DOUBLE = {"type": "number", "format": "double"}

# The ranges stand inside the validators: pydantic writes them into the JSON Schema only from there.
Count = Annotated[int, Field(ge=1, le=INT32_MAX, json_schema_extra=_INT64), BeforeValidator(_integer)]
TokenLimit = Annotated[int, Field(ge=0, le=INT32_MAX, json_schema_extra=_INT64), BeforeValidator(_integer)]
Int32 = Annotated[int, Field(ge=-INT32_MAX, le=INT32_MAX, json_schema_extra=_INT32), BeforeValidator(_integer)]
LastTokens = Annotated[int, Field(ge=-1, le=INT32_MAX, json_schema_extra=_INT64), BeforeValidator(_integer)]
LogProbsCount = Annotated[int, Field(ge=0, le=MAX_LOG_PROBS, json_schema_extra=_INT32), BeforeValidator(_integer)]
TopK = Annotated[int, Field(ge=-1, le=INT64_MAX, json_schema_extra=_INT64), BeforeValidator(_integer)]
Seed = Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX, json_schema_extra=_INT64), BeforeValidator(_integer)]
Probability = Annotated[float, Field(ge=0, le=1, json_schema_extra=_DOUBLE), BeforeValidator(_number)]
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE, json_schema_extra=_DOUBLE), BeforeValidator(_number)]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY, json_schema_extra=_DOUBLE), BeforeValidator(_number)]
Factor = Annotated[float, Field(ge=MIN_FACTOR, le=MAX_FACTOR, json_schema_extra=_DOUBLE), BeforeValidator(_number)]
Boolean = Annotated[bool, BeforeValidator(_boolean)]
String = Annotated[str, BeforeValidator(_string)]
Prompts = Annotated[tuple[Prompt, ...], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
Stops = Annotated[tuple[str, ...], PlainValidator(_stops), WithJsonSchema(_STOP_SCHEMA)]
BadWords = Annotated[tuple[str, ...], PlainValidator(_bad_words), WithJsonSchema(_BAD_WORDS_SCHEMA)]
StopTokenIds = Annotated[tuple[int, ...], PlainValidator(_stop_token_ids), WithJsonSchema(_STOP_TOKEN_IDS_SCHEMA)]
LogitBias = Annotated[tuple[tuple[int, float], ...], PlainValidator(_logit_bias), WithJsonSchema(_LOGIT_BIAS_SCHEMA)]


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
    suffix: String | None = Field(
        None, description="What comes after the completion; for models that were trained to fill in the middle"
    )
    n: Count = Field(1, description="How many choices to make for each prompt")
    best_of: Count | None = Field(
        None,
        description="How many to make of which the n with the highest log prob per token are given; not with stream. "
        "Default n",
    )
    echo: Boolean = Field(False, description="Give the prompt in front of each completion")
    logprobs: LogProbsCount | None = Field(
        None, description="Log probs of each token and of so many most likely ones; 0 is the token's own alone"
    )
    max_tokens: TokenLimit | None = Field(
        None,
        description="The maximum number of tokens to generate; clamped to the context's room. 0 only with echo: "
        "nothing is generated",
    )
    max_completion_tokens: TokenLimit | None = Field(
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
    frequency_penalty: Penalty | None = Field(
        None, description="Taken from a token's logit for each time that it was generated. Default 0"
    )
    presence_penalty: Penalty | None = Field(
        None, description="Taken from a token's logit once it was generated. Default 0"
    )
    repetition_penalty: Factor | None = Field(
        None, description="Divides positive logits of tokens of prompt and output, multiplies negative ones. Default 1"
    )
    logit_bias: LogitBias = Field((), description="Token id to what is added to its logit")
    bad_words: BadWords = Field((), description="Words that must not be generated, as they are and behind a space")
    min_tokens: TokenLimit | None = Field(
        None, description="No end token and no stop string ends the text before so many tokens. Default 0"
    )
    ignore_eos: Boolean = Field(False, description="Go on past the model's own end token")
    stop_token_ids: StopTokenIds = Field((), description="Further tokens that end the text")
    truncate_prompt_tokens: LastTokens | None = Field(
        None, description="Keep only so many last tokens of the prompt; -1: as many as leave room for max_tokens"
    )
    add_special_tokens: Boolean = Field(True, description="Whether a text prompt gets the tokenizer's BOS")
    priority: Int32 | None = Field(
        None, description="Which waiting request goes first: the one with the lower number. Default 0"
    )
    response_format: ResponseFormat = Field(
        None, description="`json_object`, or `json_schema` with a schema that the text then follows"
    )
    structured_outputs: StructuredOutputs = Field(
        None,
        description="What the text must follow: one of `json` (a schema), `json_object`, `regex`, `choice`, `grammar`",
    )
    guided_json: GuidedJson = Field(None, description="The same as `structured_outputs.json`")
    guided_regex: GuidedRegex = Field(None, description="The same as `structured_outputs.regex`")
    guided_choice: GuidedChoice = Field(None, description="The same as `structured_outputs.choice`")
    guided_grammar: GuidedGrammar = Field(None, description="The same as `structured_outputs.grammar`: GBNF or Lark")
    user: String | None = Field(None, description="An end user's identifier; accepted, not kept and not logged")
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

    @property
    def token_limit(self) -> int | None:
        """Of the two names for it, the newer one wins."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def guides(self) -> dict[str, Guide]:
        """What asks for structured output, by the field's name."""
        asked = {name: getattr(self, name) for name in GUIDE_FIELDS}
        return {name: guide for name, guide in asked.items() if guide is not None}

    @property
    def candidates(self) -> int:
        """How many completions to make for each prompt; `n` of them are given."""
        return self.n if self.best_of is None else self.best_of
