"""The schema of a completion request: the fields that only completions have, and the rules that span its fields.

Nulls are removed before validation (null equals omitting the field), so a field here is None only if it was omitted.
Validators raise with one of our error codes as pydantic's error type; parsing.py turns them into the error body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from frontend.request import unsupported_fields
from frontend.request.generation_fields import (
    IDS_SCHEMA,
    STRING_SCHEMA,
    Boolean,
    Count,
    GenerationFields,
    NumLogprobs,
    Prompt,
    String,
    field_error,
    token_id,
)
from frontend.request.parsing import RequestForm, one_error, too_many_choices
from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.fields import INT32_MAX


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """The four forms of a prompt as one: a tuple with an entry per prompt."""
    if isinstance(value, str):
        return (_text_prompt(value, None),)
    if not isinstance(value, list):
        raise field_error(
            ErrorCode.INVALID_TYPE, "must be a string, a list of strings, a list of token ids, or a list of such lists"
        )
    if not value:
        raise field_error(ErrorCode.VALUE_OUT_OF_RANGE, "is an empty list. Send at least one prompt")
    if isinstance(value[0], str):
        return tuple(_text_prompt(item, index) for index, item in enumerate(value))
    if isinstance(value[0], list):
        return tuple(_id_prompt(item, index) for index, item in enumerate(value))
    return (_id_prompt(value, None),)


def _text_prompt(value: Any, index: int | None) -> str:
    if not isinstance(value, str):
        raise field_error(ErrorCode.INVALID_TYPE, "must be a string like the prompts before it", index)
    if not value:
        raise field_error(ErrorCode.VALUE_OUT_OF_RANGE, "is empty. Send at least one character", index)
    return value


def _id_prompt(value: Any, index: int | None) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise field_error(ErrorCode.INVALID_TYPE, "must be a list of token ids like the prompts before it", index)
    if not value:
        raise field_error(ErrorCode.VALUE_OUT_OF_RANGE, "is an empty list. Send at least one token id", index)
    if set(map(type, value)) != {int}:  # one pass in C: these lists are long
        value = [token_id(item, index) for item in value]
    if min(value) < 0 or max(value) > INT32_MAX:
        raise field_error(ErrorCode.VALUE_OUT_OF_RANGE, "contains a token id outside the vocabulary", index)
    return tuple(value)


_PROMPT_SCHEMA = {
    "anyOf": [
        STRING_SCHEMA,
        {"type": "array", "items": STRING_SCHEMA, "minItems": 1},
        IDS_SCHEMA,
        {"type": "array", "items": IDS_SCHEMA, "minItems": 1},
    ]
}
Prompts = Annotated[tuple[Prompt, ...], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]


class CompletionRequest(GenerationFields):
    """A request to complete one prompt or several."""

    prompt: Prompts = Field(
        description="The prompt to generate completions for: a string or a list of token ids; "
        "a list of either gives one choice per prompt"
    )
    suffix: String | None = Field(
        None, description="Text after the completion; for models trained to fill in the middle"
    )
    best_of: Count | None = Field(
        None,
        description="Number of candidates for each prompt; the n with the highest logprob per token are returned. "
        "Not supported with stream. Default n",
    )
    echo: Boolean = Field(False, description="Return the prompt before each completion")
    logprobs: NumLogprobs | None = Field(
        None,
        description="Return the logprobs of each token and of this many most likely tokens; 0 is the token's own only",
    )
    add_special_tokens: Boolean = Field(True, description="Add the tokenizer's BOS token to a text prompt")
    return_tokens_as_token_ids: Boolean = Field(
        False, description="Return the text as `token_id:<id>` for each token, and the ids as `token_ids`"
    )
    return_token_ids: Boolean = Field(
        False,
        description="Also return the token ids of the text, as `token_ids`, and those of the prompt, as "
        "`prompt_token_ids` (in a stream, on the first chunk)",
    )

    @property
    def wants_token_ids(self) -> bool:
        """Whether choices carry `token_ids`."""
        return self.return_token_ids or self.return_tokens_as_token_ids

    @property
    def candidates(self) -> int:
        """Number of completions to generate for each prompt; `n` of them are returned."""
        return self.n if self.best_of is None else self.best_of

    @property
    def choice_count(self) -> int:
        """Number of completions that the engine generates for this request."""
        return len(self.prompt) * self.candidates

    @property
    def choices_param(self) -> str:
        """The field to lower if there are too many choices."""
        if len(self.prompt) > 1:
            return "prompt"
        return "n" if self.best_of is None else "best_of"


def _check_prompt_count(document: Mapping[str, Any], max_choices: int) -> None:
    """Rejects a million prompts before any of them is parsed, which would delay other requests."""
    prompt = document.get("prompt")
    if isinstance(prompt, list) and len(prompt) > max_choices and isinstance(prompt[0], (str, list)):
        raise too_many_choices("prompt", len(prompt), max_choices)


def _check_completion(request: CompletionRequest) -> None:
    """The rules that span several fields of a completion request alone. Raises PipelineError (400)."""
    if request.token_limit == 0 and not request.echo:
        name = request.token_limit_name
        message = f"{name} must be at least 1. 0 is allowed with `echo: true` only."
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, name, message)
    if request.candidates < request.n:
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, "best_of", f"best_of must be at least n, which is {request.n}.")
    if request.candidates > request.n and request.stream:
        message = "best_of greater than n is not supported with stream=true."
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, "best_of", message)


COMPLETION_FORM = RequestForm(
    CompletionRequest,
    "a completion request",
    unsupported_fields.OF_COMPLETIONS,
    _check_prompt_count,
    _check_completion,
)
