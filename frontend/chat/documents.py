"""The JSON Schema of the answer to a chat. Answers are built by hand, and tests validate them against it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from frontend.response.documents import Document, Usage

_SCHEMA_URL: dict[str, Any] = {
    "format": "uri",
    "examples": ["https://example.com/openai/schemas/ChatCompletion.json"],
}
_ABSENT: dict[str, Any] = {"default_factory": list, "json_schema_extra": {}}


class TopLogprob(Document):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int] | None = Field(description="The bytes of the token; null for a token listed by its id")


class TokenLogprob(TopLogprob):
    """One token of the answer."""

    logprob: float = Field(
        description="Natural logarithm of the model's own probability, before temperature, penalties, bias and "
        "filters; -9999 if the engine has none"
    )
    top_logprobs: list[TopLogprob] = Field(description="The most likely tokens at this position")


class ChatLogprobs(Document):
    """Logprobs of all tokens of the answer, those of reasoning and tool calls too."""

    content: list[TokenLogprob]
    refusal: None


class CalledFunction(Document):
    """A function with its arguments."""

    name: str
    arguments: str = Field(description="A JSON object; cut off if the finish reason is `length`")


class ToolCall(Document):
    """A call that the model makes."""

    id: str = Field(description="To be returned as tool_call_id with the result")
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Document):
    """The answer."""

    role: Literal["assistant"]
    content: str | None = Field(description="The text; null if there are only tool calls")
    refusal: None
    reasoning_content: str = Field("", description="The reasoning of a model that has it", json_schema_extra={})
    tool_calls: list[ToolCall] = Field(description="The calls, if there are any", **_ABSENT)


class ChatChoice(Document):
    """One answer."""

    index: int = Field(ge=0)
    message: AssistantMessage
    logprobs: ChatLogprobs | None = Field(description="With `logprobs: true`; null without")
    finish_reason: Literal["stop", "length", "tool_calls"] = Field(
        description="stop: a stop string or an end token; length: the token limit; tool_calls: the model has made calls"
    )
    token_ids: list[int] = Field(description="The tokens of the answer; only with return_token_ids", **_ABSENT)


class ChatCompletion(Document):
    """The answer to a conversation."""

    id: str = Field(pattern="^chatcmpl-", description="Unique for each request")
    object: Literal["chat.completion"] = Field(description="The object type, which is always 'chat.completion'")
    created: int = Field(description="The Unix timestamp (in seconds) of when the request was accepted")
    model: str = Field(description="The model used for the completion, under the name in the request")
    choices: list[ChatChoice] = Field(description="The answers, by index")
    usage: Usage = Field(description="Usage statistics for the completion request")
    prompt_token_ids: list[int] = Field(
        description="The tokens of the rendered prompt; only with return_token_ids", **_ABSENT
    )
    schema_url: str = Field(
        alias="$schema", description="A URL to the JSON Schema for this object", json_schema_extra=_SCHEMA_URL
    )
