"""The schema of a chat completion request: the fields that only chat has, and the rules that span its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from frontend.chat.messages import MAX_MESSAGES, Messages, fail, unknown_keys
from frontend.chat.tool_fields import (
    Documents,
    TemplateKwargs,
    ToolChoice,
    ToolChoiceField,
    ToolList,
    Tools,
    ToolUse,
)
from frontend.chat.unsupported import OF_CHAT
from frontend.request.generation_fields import Boolean, GenerationFields, NumLogprobs
from frontend.request.parsing import RequestForm, one_error
from llm_pipeline.protocol.errors import ErrorCode

REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


def _reasoning_effort(value: Any) -> str:
    if value not in REASONING_EFFORTS:
        fail("", f"must be one of {', '.join(REASONING_EFFORTS)}", ErrorCode.VALUE_OUT_OF_RANGE)
    return str(value)


ReasoningEffort = Annotated[str, PlainValidator(_reasoning_effort), WithJsonSchema({"enum": [*REASONING_EFFORTS]})]


class ChatCompletionRequest(GenerationFields):
    """A request for the next message of a conversation."""

    messages: Messages = Field(
        description="The conversation so far. Content is a string or a list of text parts; `developer` is the same as "
        "`system` unless the model's template knows it"
    )
    tools: ToolList = Field(
        Tools(), description="The functions that the model may call", json_schema_extra={"default": []}
    )
    tool_choice: ToolChoiceField | None = Field(
        None,
        description="`none`: the model sees no tools; `auto`: it may call some; `required`: it calls at least one; or "
        "the function to call. Default auto with tools",
    )
    parallel_tool_calls: Boolean = Field(True, description="Whether an answer may have several tool calls")
    logprobs: Boolean = Field(False, description="Return the logprob of each token of the answer")
    top_logprobs: NumLogprobs | None = Field(
        None, description="Also return this many most likely tokens at each position; only with `logprobs: true`"
    )
    reasoning_effort: ReasoningEffort | None = Field(
        None, description="Passed to the template, which ignores it unless the model has such levels"
    )
    include_reasoning: Boolean = Field(True, description="Whether the answer has `reasoning_content`, if there is any")
    add_generation_prompt: Boolean | None = Field(
        None, description="Begin the answer with the template's header of an assistant's message. Default true"
    )
    continue_final_message: Boolean = Field(
        False, description="Continue the last message instead of answering it; add_generation_prompt is then false"
    )
    chat_template_kwargs: TemplateKwargs = Field(
        {}, description="More variables for the template, such as `enable_thinking`"
    )
    documents: Documents = Field((), description="Documents for templates that know them")
    add_special_tokens: Boolean = Field(
        False, description="Add the tokenizer's BOS token before the prompt; the template usually has it already"
    )
    return_tokens_as_token_ids: Boolean = Field(False, description="Write the tokens in logprobs as `token_id:<id>`")
    return_token_ids: Boolean = Field(
        False,
        description="Also return the token ids of each choice, as `token_ids`, and those of the prompt, as "
        "`prompt_token_ids` of the answer (in a stream, on the first chunk)",
    )

    @property
    def tool_use(self) -> ToolChoice:
        """The tool choice with its default; NONE without tools."""
        if not self.tools.tools:
            return ToolChoice(ToolUse.NONE)
        return self.tool_choice or ToolChoice(ToolUse.AUTO)

    @property
    def begins_answer(self) -> bool:
        """Whether the prompt ends with the header of an assistant's message."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt


def _check_message_count(document: Mapping[str, Any], max_choices: int) -> None:
    """Rejects a million messages before any of them is read, which would delay other requests."""
    messages = document.get("messages")
    if isinstance(messages, list) and len(messages) > MAX_MESSAGES:
        message = f"messages must contain at most {MAX_MESSAGES} messages."
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, "messages", message)


def _check_chat(request: ChatCompletionRequest) -> None:
    """The rules that span several fields of a chat request alone. Raises PipelineError (400)."""
    if request.token_limit == 0:
        name = request.token_limit_name
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, name, f"{name} must be at least 1.")
    if request.top_logprobs and not request.logprobs:
        message = "top_logprobs is only allowed with `logprobs: true`."
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, "top_logprobs", message)
    if request.continue_final_message and request.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other. Set one of them."
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, "continue_final_message", message)
    _check_tool_choice(request)


def _check_tool_choice(request: ChatCompletionRequest) -> None:
    choice = request.tool_choice
    if choice is None or choice.use is not ToolUse.REQUIRED:
        return
    if not request.tools.tools:
        message = "tool_choice requires a tool call, and there are no tools. Send tools."
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, "tool_choice", message)
    if choice.name is not None and choice.name not in request.tools.names:
        message = "tool_choice.function.name must be the name of one of the tools."
        raise one_error(ErrorCode.VALUE_OUT_OF_RANGE, "tool_choice.function.name", message)


CHAT_FORM = RequestForm(
    ChatCompletionRequest,
    "a chat completion request",
    OF_CHAT,
    _check_message_count,
    _check_chat,
    unknown_keys,
)
