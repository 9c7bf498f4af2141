"""The operation `chat`: makes a prompt of the messages, and reads the completion as the next message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from frontend.chat.answer import ChatAnswer
from frontend.chat.messages import ChatMessage
from frontend.chat.parsing.answer_parser import AnswerPlan
from frontend.chat.parsing.plan import Dialect, plan_of
from frontend.chat.schema import CHAT_FORM, ChatCompletionRequest
from frontend.chat.template import ChatTemplate, RenderedPrompt
from frontend.chat.tool_fields import ToolUse
from frontend.chat.tools.formats import AUTOMATIC
from frontend.chat.tools.generic_prompt import with_tools, without_calls
from frontend.models.registry import ServedModel
from frontend.request.parsing import RequestForm
from frontend.request.to_parameters import EngineInput
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.model_info import ChatFormat, ModelInfo
from llm_pipeline.runtime.deployment import ModelKind

_NO_TEMPLATE = (
    "This model has no chat template, so that messages cannot be made into its prompt. "
    "Send a prompt to /v1/completions, build the engine from a model with a template, or set CHAT_TEMPLATE."
)


@dataclass(frozen=True)
class _ModelChat:
    """What does not change from one chat with a model to the next."""

    chat_format: ChatFormat
    template: ChatTemplate
    dialect: Dialect


class ChatOperation:
    """Answers conversations. One object for each app and its event loop: it keeps the compiled templates.

    `parse_special_tokens`: text of a client that spells a special token is that token. `tool_format` is the name of the
    way in which models write calls (tools/formats.py); "auto" finds it in a model's template. Without
    `separates_reasoning`, reasoning is content.
    """

    name = "chat"

    def __init__(
        self, *, parse_special_tokens: bool = False, tool_format: str = AUTOMATIC, separates_reasoning: bool = True
    ) -> None:
        self._parse_special_tokens = parse_special_tokens
        self._tool_format = tool_format
        self._separates_reasoning = separates_reasoning
        self._models: dict[str, _ModelChat] = {}  # by the model's name

    @property
    def form(self) -> RequestForm[ChatCompletionRequest]:
        """The rules of a chat completion request."""
        return CHAT_FORM

    async def prepare(
        self, model: ServedModel, request: ChatCompletionRequest, holder: str | None = None
    ) -> tuple[EngineInput, ChatAnswer]:
        """The engine's input and the answer's form. `holder` is the name of the API key, for turns at rendering.

        Raises PipelineError: 400 if the model has no template or its template refuses the messages, 503 while the
        template is unknown.
        """
        info = await model.info_cache.read()
        model_chat = self._of_model(model, _format_of(model, info))
        prompt = await self._render(model_chat, request, holder)
        plan = plan_of(request, model_chat.dialect, prompt)
        parameters = {**_parameters(request, prompt), **_of_plan(plan)}
        if request.token_limit is None:
            parameters["max_tokens"] = _default_max_tokens(model, info)
        return EngineInput((prompt.text,), request.n, parameters), ChatAnswer(request, plan.new_parser)

    async def _render(self, chat: _ModelChat, request: ChatCompletionRequest, holder: str | None) -> RenderedPrompt:
        messages, tools = _messages(request.messages, chat.chat_format), _tools(request)
        if not chat.dialect.knows_tools:
            messages, tools = with_tools(messages, tools) if tools else without_calls(messages), None
        return await chat.template.render_in_turns(
            messages,
            holder=holder,
            tools=tools,
            documents=request.documents or None,
            add_generation_prompt=request.begins_answer,
            continue_final_message=request.continue_final_message,
            extra=_variables(request),
        )

    def _of_model(self, model: ServedModel, chat_format: ChatFormat) -> _ModelChat:
        known = self._models.get(model.name)
        if known is not None and known.chat_format is chat_format:
            return known
        if known is None or known.chat_format != chat_format:
            template = ChatTemplate(chat_format, parse_special_tokens=self._parse_special_tokens)
            dialect = Dialect.of(
                chat_format, tool_format=self._tool_format, separates_reasoning=self._separates_reasoning
            )
            known = _ModelChat(chat_format, template, dialect)
        # The model info is read again from time to time: the next comparison is that of two references.
        self._models[model.name] = known = replace(known, chat_format=chat_format)
        return known


def _format_of(model: ServedModel, info: ModelInfo | None) -> ChatFormat:
    if info is None and model.deployed.kind is ModelKind.ENSEMBLE:
        message = "The engine has not yet reported its chat template. Retry after the delay in the Retry-After header."
        raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, message)
    if info is None or info.chat is None:
        raise PipelineError(ErrorCode.UNSUPPORTED_PARAMETER, _NO_TEMPLATE, param="messages")
    return info.chat


def _messages(messages: Sequence[ChatMessage], chat_format: ChatFormat) -> Sequence[ChatMessage]:
    """The messages with `developer` as `system`, unless the template knows it: most would refuse or drop it."""
    if all(message["role"] != "developer" for message in messages):
        return messages
    if any("developer" in source for _, source in chat_format.templates):
        return messages
    return [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]


def _tools(request: ChatCompletionRequest) -> Sequence[dict[str, Any]] | None:
    """The tools for the template: with tool_choice none, it must not offer any."""
    return None if request.tool_use.use is ToolUse.NONE else [*request.tools.tools]


def _variables(request: ChatCompletionRequest) -> dict[str, Any]:
    effort = {} if request.reasoning_effort is None else {"reasoning_effort": request.reasoning_effort}
    return {**effort, **request.chat_template_kwargs}


def _parameters(request: ChatCompletionRequest, prompt: RenderedPrompt) -> dict[str, Any]:
    as_token_ids = request.logprobs and request.return_tokens_as_token_ids
    return {
        "plain_spans": prompt.plain_spans,
        "add_special_tokens": request.add_special_tokens,
        "num_logprobs": (request.top_logprobs or 0) if request.logprobs else None,
        "return_token_ids": request.return_token_ids or as_token_ids,
        "return_tokens_as_token_ids": as_token_ids,
        "prompt_param": "messages",
    }


def _of_plan(plan: AnswerPlan) -> dict[str, Any]:
    """What the parser of the answer needs of the engine."""
    shown = {"skip_special_tokens": False} if plan.needs_special_tokens else {}
    return shown if plan.guide is None else {**shown, "guide": plan.guide, "guide_param": plan.guide_param}


def _default_max_tokens(model: ServedModel, info: ModelInfo | None) -> int | None:
    """The token limit of a chat without one: the room in the context, as OpenAI and vLLM have it.

    The deployment's own default and limit for the model come first. None if the context is unknown.
    """
    if model.deployed.default_max_tokens:
        return None
    context = info.context_length if info is not None else model.max_model_len
    limits = [limit for limit in (model.deployed.limits.max_tokens, context) if limit is not None]
    return min(limits, default=None)
