"""The JSON Schemas of what goes in and out: served under /openai/schemas/ and used by the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from frontend.request.schemas import CompletionRequest
from llm_pipeline.protocol.errors import ERRORS, ErrorCode

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCHEMA_URL: dict[str, Any] = {"format": "uri", "examples": ["https://example.com/openai/schemas/Completion.json"]}


def _tidy(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        field.pop("title", None)


class _Document(BaseModel):
    """These models only describe: answers are built by hand (sse.py, answer.py, errors.py) and tested against them."""

    model_config = ConfigDict(json_schema_extra=_tidy)


class Usage(_Document):
    """Token counts; all of them are real."""

    prompt_tokens: int = Field(ge=0, description="Tokens of the prompts as the model saw them")
    completion_tokens: int = Field(ge=0, description="Tokens made, those of a stop string and the end included")
    total_tokens: int = Field(ge=0, description="The sum of both")


class LogProbs(_Document):
    """Of each token of the text; the four lists are equally long. A chunk of a stream holds its own part."""

    tokens: list[str] = Field(
        description="The tokens as text; `bytes:\\xe2\\x80` for a part of a character, `token_id:N` with "
        "return_tokens_as_token_ids"
    )
    token_logprobs: list[float | None] = Field(
        description="Natural logarithms of the model's own probabilities, before temperature, penalties, bias and "
        "filters; null for the first token of a prompt"
    )
    top_logprobs: list[dict[str, float] | None] = Field(
        description="The most likely tokens at each place, and the token itself if it is none of them"
    )
    text_offset: list[int] = Field(description="Where each token begins, in characters of the choice's whole text")


class CompletionChoice(_Document):
    """One completion of one prompt."""

    index: int = Field(ge=0, description="Prompts in order, n choices for each")
    text: str = Field(description="The completion; with echo, the prompt in front of it")
    finish_reason: Literal["stop", "length"] = Field(
        description="stop: a stop string or the model's own end; length: the token limit"
    )
    logprobs: LogProbs | None = Field(description="With logprobs; null without")
    token_ids: list[int] = Field(
        default_factory=list,
        description="The tokens; only with return_token_ids or return_tokens_as_token_ids",
        json_schema_extra={},
    )


class Completion(_Document):
    """A finished completion."""

    id: str = Field(pattern="^cmpl-", description="Differs for every request")
    object: Literal["text_completion"] = Field(description="The object type, which is always 'text_completion'")
    created: int = Field(description="The Unix timestamp (in seconds) of when the request was accepted")
    model: str = Field(description="The model used for the completion, by the name that was asked for")
    choices: list[CompletionChoice] = Field(description="The list of completion choices, by index")
    usage: Usage = Field(description="Usage statistics for the completion request")
    schema_url: str = Field(
        alias="$schema", description="A URL to the JSON Schema for this object", json_schema_extra=_SCHEMA_URL
    )


class ErrorObject(_Document):
    """What the OpenAI clients read."""

    message: str = Field(description="What was wrong, the limit and the fix")
    type: str = Field(json_schema_extra={"enum": [*sorted({kind.type for kind in ERRORS.values()})]})
    param: str | None = Field(description="The request field at fault")
    code: str = Field(json_schema_extra={"enum": [*sorted(code.value for code in ErrorCode)]})


class ErrorDetail(_Document):
    """One broken rule."""

    message: str
    location: str = Field(description="Path of the value at fault, such as `body.prompt[1]`")


class Error(_Document):
    """The body of every error answer; also a problem document of RFC 9457."""

    error: ErrorObject
    title: str = Field(description="The status in words")
    status: int = Field(ge=400, le=599, description="The HTTP status")
    detail: str = Field(description="The same as error.message")
    errors: list[ErrorDetail] = Field(description="Every broken rule, where there are several")
    schema_url: str = Field(
        alias="$schema", description="A URL to the JSON Schema for this object", json_schema_extra={"format": "uri"}
    )


class ModelCapabilities(_Document):
    """What the model's engine does with a request; a field that it does not have is refused by name.

    While the engine can't be asked, only `kind`, `executor` and what depends on the kind are there; behind NVIDIA's own
    ensemble, what it has no input for is there, too.
    """

    kind: Literal["ensemble", "inflight_batcher_llm"] = Field(description="Whose ensemble serves it: ours or NVIDIA's")
    executor: Literal["cpu", "tensorrt_llm", "scripted"] | None = Field(
        description="What makes the tokens; null: not known"
    )
    prompt_token_ids: bool = Field(description="Whether prompts may be token ids")
    min_p: bool
    skip_special_tokens: bool = Field(description="Whether false does something")
    return_token_ids: bool
    return_tokens_as_token_ids: bool
    echo: bool
    stop_token_ids: bool
    truncate_prompt_tokens: bool
    add_special_tokens: bool = Field(description="Whether false does something")
    best_of: bool = Field(False, description="Whether it may be above `n`")
    suffix: bool = False
    repetition_penalty: bool = False
    presence_penalty: bool = False
    frequency_penalty: bool = False
    logit_bias: bool = False
    bad_words: bool = False
    min_tokens: bool = False
    priority: bool = False
    time_limit: bool = False
    logprobs: int | None = Field(
        None,
        description="The most that `logprobs` may ask for; 0 is each token's own log prob alone, null is none at all",
    )
    prompt_logprobs: bool = Field(False, description="Whether `echo` and `logprobs` go together")
    guides: list[str] = Field(default_factory=list, description="What the text can be made to follow")


class ModelLimits(_Document):
    """The most that one request may ask for. Null: not known to the front end."""

    default_max_tokens: int | None = Field(description="max_tokens of a request without; 0 fills the context")
    max_tokens: int | None
    max_choices: int = Field(description="Prompts times n")
    max_in_flight: int = Field(description="Choices in work at once, for everybody together; more is a 429")
    max_stop_strings: int
    max_stop_characters: int = Field(description="Of one stop string")
    max_body_bytes: int
    request_timeout_s: float = Field(description="Seconds that a request may take")


class Model(_Document):
    """A model that can be asked for."""

    id: str = Field(description="The name to ask for")
    object: Literal["model"]
    created: int = Field(description="Unix time in seconds at which this server started to serve it")
    owned_by: str
    root: str = Field(description="The model's own name; differs from id for an alias")
    parent: str | None = Field(description="The model that this one is an adapter or a variant of")
    max_model_len: int | None = Field(description="Context length in tokens, prompt and completion; null: not known")
    aliases: list[str] = Field(description="Further names of the same model")
    limits: ModelLimits
    defaults: dict[str, float] = Field(description="What holds where a request leaves the field out, if not the API's")
    capabilities: ModelCapabilities = Field(description="What a request may ask for, where models differ")
    # These two are left out while the engine can't be asked.
    vocab_size: int = Field(0, description="Token ids are below this")
    fills_in_middle: bool = Field(False, description="Whether `suffix` works")
    schema_url: str = Field(
        "", alias="$schema", description="A URL to the JSON Schema for this object", json_schema_extra={"format": "uri"}
    )


class ModelList(_Document):
    """All models that can be asked for."""

    object: Literal["list"]
    data: list[Model]
    schema_url: str = Field(
        alias="$schema", description="A URL to the JSON Schema for this object", json_schema_extra={"format": "uri"}
    )


DOCUMENTS: dict[str, type[BaseModel]] = {
    "Completion": Completion,
    "CompletionRequest": CompletionRequest,
    "Error": Error,
    "Model": Model,
    "ModelList": ModelList,
}


def schema_document(name: str, url: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of this name, as it is served at `url`. KeyError when there is none."""
    schema = TypeAdapter(DOCUMENTS[name]).json_schema(by_alias=True)
    return {"$schema": DIALECT, "$id": url, **schema}


def openapi_schemas() -> dict[str, Any]:
    """All of them as the components of an OpenAPI 3.1 document."""
    inputs = [(model, "validation", TypeAdapter(model)) for model in DOCUMENTS.values()]
    _, document = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schemas: dict[str, Any] = document["$defs"]
    return schemas
