"""The JSON Schemas of requests and responses, served under /openai/schemas/ and used by the OpenAPI document."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, Field, TypeAdapter, create_model

from frontend.chat.documents import ChatCompletion
from frontend.chat.schema import ChatCompletionRequest
from frontend.models.capabilities import ENSEMBLE_ONLY
from frontend.request.schemas import CompletionRequest
from frontend.response.documents import Document, Usage
from llm_pipeline.protocol.capabilities import Capabilities
from llm_pipeline.protocol.errors import ERRORS, ErrorCode
from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.protocol.fields import SAMPLING_EXTENSIONS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCHEMA_URL: dict[str, Any] = {"format": "uri", "examples": ["https://example.com/openai/schemas/Completion.json"]}


class LogProbs(Document):
    """Logprobs of the tokens of the text; the four lists have the same length. A chunk of a stream has its own part."""

    tokens: list[str] = Field(
        description="The tokens as text; `bytes:\\xe2\\x80` for a part of a character, `token_id:N` with "
        "return_tokens_as_token_ids"
    )
    token_logprobs: list[float | None] = Field(
        description="Natural logarithms of the model's own probabilities, before temperature, penalties, bias and "
        "filters; null for the first token of a prompt"
    )
    top_logprobs: list[dict[str, float] | None] = Field(
        description="The most likely tokens at each position, and the token itself if it is not among them"
    )
    text_offset: list[int] = Field(description="Where each token begins, in characters of the choice's whole text")


class CompletionChoice(Document):
    """One completion of one prompt."""

    index: int = Field(ge=0, description="Position in the list: prompts in order, n choices for each")
    text: str = Field(description="The completion; with echo, the prompt precedes it")
    finish_reason: Literal["stop", "length"] = Field(
        description="stop: a stop string or an end token; length: the token limit"
    )
    logprobs: LogProbs | None = Field(description="With logprobs; null without")
    token_ids: list[int] = Field(
        default_factory=list,
        description="The tokens of the completion; only with return_token_ids or return_tokens_as_token_ids",
        json_schema_extra={},
    )
    prompt_token_ids: list[int] = Field(
        default_factory=list,
        description="The tokens of the prompt, also without echo; only with return_token_ids",
        json_schema_extra={},
    )


class Completion(Document):
    """A finished completion."""

    id: str = Field(pattern="^cmpl-", description="Unique for each request")
    object: Literal["text_completion"] = Field(description="The object type, which is always 'text_completion'")
    created: int = Field(description="The Unix timestamp (in seconds) of when the request was accepted")
    model: str = Field(description="The model used for the completion, under the name in the request")
    choices: list[CompletionChoice] = Field(description="The list of completion choices, by index")
    usage: Usage = Field(description="Usage statistics for the completion request")
    schema_url: str = Field(
        alias="$schema", description="A URL to the JSON Schema for this object", json_schema_extra=_SCHEMA_URL
    )


class ErrorObject(Document):
    """The error in OpenAI's format."""

    message: str = Field(description="The cause, the limit and the action to take")
    type: str = Field(json_schema_extra={"enum": [*sorted({kind.type for kind in ERRORS.values()})]})
    param: str | None = Field(description="The invalid request field")
    code: str = Field(json_schema_extra={"enum": [*sorted(code.value for code in ErrorCode)]})


class ErrorDetail(Document):
    """One violated constraint."""

    message: str
    location: str = Field(description="Path of the invalid value, such as `body.prompt[1]`")


class Error(Document):
    """The body of every error response; also a problem document of RFC 9457."""

    error: ErrorObject
    title: str = Field(description="The name of the status")
    status: int = Field(ge=400, le=599, description="The HTTP status")
    detail: str = Field(description="The same text as error.message")
    errors: list[ErrorDetail] = Field(description="All violated constraints, if there are several")
    schema_url: str = Field(
        alias="$schema", description="A URL to the JSON Schema for this object", json_schema_extra={"format": "uri"}
    )


_CAPABILITY_DESCRIPTIONS = {
    "kind": "Whose ensemble serves the model: ours or NVIDIA's",
    "executor": "The executor that generates the tokens; null if unknown",
    "prompt_token_ids": "Whether prompts may be token ids",
    "skip_special_tokens": "Whether false has an effect",
    "add_special_tokens": "Whether false has an effect",
    "best_of": "Whether it may be greater than `n`",
    "chat": "Whether the model has a chat template, so that chat completions work",
    "logprobs": "The maximum value of `logprobs`; 0: only each token's own logprob; null: no logprobs at all",
    "prompt_logprobs": "Whether `echo` is supported with `logprobs`",
    "guides": "The kinds of structured output",
    "lora": "Whether the model has LoRA adapters, or is one",
}


def _capability(name: str, annotation: Any, default: Any = ...) -> tuple[Any, Any]:
    return annotation, Field(default, description=_CAPABILITY_DESCRIPTIONS.get(name))


_CAPABILITIES: dict[str, Any] = {
    "kind": _capability("kind", Literal["ensemble", "inflight_batcher_llm"]),
    "executor": _capability("executor", ExecutorName | None),
    **{name: _capability(name, bool) for name in ENSEMBLE_ONLY},
    **{name: _capability(name, bool, False) for name in ("best_of", "suffix", "chat", *SAMPLING_EXTENSIONS)},
    **{
        field.name: _capability(field.name, get_type_hints(Capabilities)[field.name], field.default)
        for field in fields(Capabilities)
        if field.name not in ("executor", "sampling", "guides")
    },
    "guides": (list[str], Field(default_factory=list, description=_CAPABILITY_DESCRIPTIONS["guides"])),
}
ModelCapabilities: Any = create_model(
    "ModelCapabilities",
    __base__=Document,
    __doc__="""What the model's engine supports. Requests with an unsupported field are rejected with its name.

    While the engine is unreachable, only `kind`, `executor` and the flags that depend on the kind are present; for
    NVIDIA's own ensemble, also the flags of fields that it has no input for.
    """,
    **_CAPABILITIES,
)


class ModelLimits(Document):
    """Limits of one request. Null if unknown to the front end."""

    default_max_tokens: int | None = Field(description="max_tokens of requests that omit it; 0 fills the context")
    max_tokens: int | None
    max_choices: int = Field(description="Prompts times n")
    max_in_flight: int = Field(description="Concurrent choices of all clients; more are rejected with 429")
    max_stop_strings: int
    max_stop_characters: int = Field(description="Length of one stop string")
    max_body_bytes: int
    request_timeout_s: float = Field(description="Timeout of a request in seconds")


class Model(Document):
    """A model that this server serves."""

    id: str = Field(description="The name to use in requests")
    object: Literal["model"]
    created: int = Field(description="Unix time in seconds at which this server started to serve it")
    owned_by: str
    root: str = Field(description="The model's own name; differs from id for an alias")
    parent: str | None = Field(description="The model that this one is an adapter or a variant of")
    max_model_len: int | None = Field(description="Context length in tokens, prompt and completion; null if unknown")
    aliases: list[str] = Field(description="Other names of the same model")
    limits: ModelLimits
    defaults: dict[str, float] = Field(description="Defaults of request fields that differ from the API's")
    capabilities: ModelCapabilities = Field(description="Request fields that not every model supports")
    # These two are omitted while the engine is unreachable.
    vocab_size: int = Field(0, description="Token ids are below this")
    fills_in_middle: bool = Field(False, description="Whether `suffix` works")
    schema_url: str = Field(
        "", alias="$schema", description="A URL to the JSON Schema for this object", json_schema_extra={"format": "uri"}
    )


class ModelList(Document):
    """All models that this server serves."""

    object: Literal["list"]
    data: list[Model]
    schema_url: str = Field(
        alias="$schema", description="A URL to the JSON Schema for this object", json_schema_extra={"format": "uri"}
    )


DOCUMENTS: dict[str, type[BaseModel]] = {
    "ChatCompletion": ChatCompletion,
    "ChatCompletionRequest": ChatCompletionRequest,
    "Completion": Completion,
    "CompletionRequest": CompletionRequest,
    "Error": Error,
    "Model": Model,
    "ModelList": ModelList,
}


def schema_document(name: str, url: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of this name, as it is served at `url`. Raises KeyError for an unknown name."""
    schema = TypeAdapter(DOCUMENTS[name]).json_schema(by_alias=True)
    return {"$schema": DIALECT, "$id": url, **schema}


def openapi_schemas() -> dict[str, Any]:
    """All of them as the components of an OpenAPI 3.1 document."""
    inputs = [(model, "validation", TypeAdapter(model)) for model in DOCUMENTS.values()]
    _, document = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schemas: dict[str, Any] = document["$defs"]
    return schemas
