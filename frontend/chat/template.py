"""Renders the messages of a chat as the prompt of a completion, with the model's own template.

The sandbox and its limits are llm_pipeline/chat_templates'; plain_text.py keeps the client's text apart from
the template's tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from frontend.chat.plain_text import PlainText, plain_text_of
from frontend.request.parsing_turns import ParsingTurns
from llm_pipeline.chat_templates.compiled import CompiledTemplate
from llm_pipeline.chat_templates.meter import LIMIT_S, ChatTemplateError, Meter, OverTimeError
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.model_info import DEFAULT_TEMPLATE, ChatFormat

TOOL_TEMPLATE = "tool_use"  # the name of a template for requests with tools, if the model has one of its own
_ON_LOOP_S = 0.002  # for which a rendering may hold the event loop; longer ones go to a thread
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_CONTINUATION = "CONTINUE_FINAL_MESSAGE_TAG "  # as in transformers: some templates strip the space


@dataclass(frozen=True)
class RenderedPrompt:
    """The text of a prompt, to be encoded without added special tokens: the template writes its own BOS.

    `plain_spans` as in CompletionParameters.
    """

    text: str
    plain_spans: tuple[int, ...] = ()


@lru_cache(maxsize=64)
def _compiled(source: str) -> CompiledTemplate:
    return CompiledTemplate(source)


class ChatTemplate:
    """The templates of one model. Belongs to one event loop.

    `parse_special_tokens`: text of a client that spells a token is that token.
    """

    def __init__(self, chat: ChatFormat, *, parse_special_tokens: bool = False) -> None:
        self._chat = chat
        self._sources = dict(chat.templates)
        self._parse_special_tokens = parse_special_tokens
        self._is_compiled = False
        self._turns = ParsingTurns()

    async def render_in_turns(
        self, messages: Sequence[Mapping[str, Any]], *, holder: str | None = None, **options: Any
    ) -> RenderedPrompt:
        """Like `render`, without holding the event loop for longer than a few milliseconds.

        What takes longer is done in a thread that leaves half of the time to the event loop, one rendering at a time;
        those of different holders (API keys) take turns.
        """
        if self._is_compiled:
            try:
                return self._render(messages, Meter(_ON_LOOP_S), **options)
            except OverTimeError:
                pass
        async with self._turns.turn(holder):
            meter = Meter(LIMIT_S, pauses=True)
            try:
                return await asyncio.to_thread(partial(self._render_within_limit, messages, meter, **options))
            except asyncio.CancelledError:
                meter.cancel()
                raise

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """The prompt of `messages`, whose values are those of JSON. `extra` are further variables of the template.

        Raises PipelineError (400) if the template refuses the messages, fails, or exceeds a limit.
        """
        return self._render_within_limit(
            messages,
            Meter(LIMIT_S),
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            extra=extra,
        )

    def _render_within_limit(
        self, messages: Sequence[Mapping[str, Any]], meter: Meter, **options: Any
    ) -> RenderedPrompt:
        try:
            return self._render(messages, meter, **options)
        except OverTimeError as error:
            raise _refused(error) from error

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        meter: Meter,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """Raises OverTimeError for the meter's limit, PipelineError (400) for everything else."""
        try:
            meter.start()
            template = self._template(has_tools=tools is not None)
            variables: dict[str, Any] = {"tools": tools, "documents": documents, **(extra or {})}
            plain_text = None if self._parse_special_tokens else plain_text_of(self._chat)
            if plain_text is not None:
                variables = plain_text.marked(variables)
            messages = _prepared(messages, plain_text, meter)
            final = _tag_final_message(messages) if continue_final_message else None
            text = template.render(
                {
                    **self._special_tokens(),
                    **variables,
                    "messages": messages,
                    "add_generation_prompt": add_generation_prompt,
                },
                meter=meter,
            )
            text = text if final is None else _cut_at_tag(text, final)
        except OverTimeError:
            raise
        except ChatTemplateError as error:
            raise _refused(error) from error
        return RenderedPrompt(text) if plain_text is None else RenderedPrompt(*plain_text.unmarked(text))

    def _template(self, *, has_tools: bool) -> CompiledTemplate:
        names = (TOOL_TEMPLATE, DEFAULT_TEMPLATE) if has_tools else (DEFAULT_TEMPLATE,)
        source = next((self._sources[name] for name in names if name in self._sources), None)
        if source is None:
            raise ChatTemplateError("the model has named templates only, and none for requests without tools")
        compiled = _compiled(source)
        self._is_compiled = True
        return compiled

    def _special_tokens(self) -> dict[str, str]:
        tokens = {"bos_token": self._chat.bos_token, "eos_token": self._chat.eos_token}
        return {name: token for name, token in tokens.items() if token}


def _refused(error: ChatTemplateError) -> PipelineError:
    return PipelineError(
        ErrorCode.VALUE_OUT_OF_RANGE,
        f"The model's chat template does not accept this request: {str(error).rstrip('.')}.",
        param="messages",
    )


def _prepared(
    messages: Sequence[Mapping[str, Any]], plain_text: PlainText | None, meter: Meter
) -> list[dict[str, Any]]:
    prepared = []
    for message in messages:
        meter.tick()
        prepared.append(_with_reasoning(message if plain_text is None else plain_text.marked_message(message)))
    return prepared


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under the names that templates read, as transformers does since 5.0."""
    reasoning = next((message[key] for key in _REASONING_KEYS if message.get(key) is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _tag_final_message(messages: list[dict[str, Any]]) -> str:
    """Appends a tag to the final text, at which the prompt is cut; returns the text without it."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, str):
        messages[-1]["content"] = content + _CONTINUATION
        return content
    parts: list[Any] = list(content) if isinstance(content, list) else []
    for index in reversed(range(len(parts))):
        part = parts[index]
        if isinstance(part, dict) and isinstance(text := part.get("text"), str):
            parts[index] = {**part, "text": text + _CONTINUATION}
            messages[-1]["content"] = parts
            return text
    raise ChatTemplateError("continue_final_message needs a last message with text")


def _cut_at_tag(prompt: str, final: str) -> str:
    tag = _CONTINUATION.strip()
    at = prompt.rfind(tag)
    if at < 0 or final.strip() not in prompt:
        raise ChatTemplateError("it does not write the last message as it is, so that it can't be continued")
    # A template that strips the text has stripped the tag's space: then the text's own goes too.
    return prompt[:at] if prompt.startswith(_CONTINUATION, at) else prompt[:at].rstrip()
