"""Chooses the parser and the guide of an answer by the request and the model's template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from frontend.chat.parsing.answer_parser import PLAIN_TEXT, AnswerParser, AnswerPlan
from frontend.chat.parsing.reasoning import ReasoningMarkers, ReasoningSplitter, ends_in_reasoning, markers_of
from frontend.chat.parsing.reasoning_parser import ReasoningAnswerParser
from frontend.chat.parsing.special_tokens import SpecialTokenFilter, without_special_tokens
from frontend.chat.parsing.tool_calls import ToolCallParser
from frontend.chat.schema import ChatCompletionRequest
from frontend.chat.template import RenderedPrompt
from frontend.chat.tool_fields import ToolUse
from frontend.chat.tools.call_ids import new_call_id
from frontend.chat.tools.formats import ToolFormat, format_of, knows_tools
from frontend.chat.tools.guides import CallRules, guide_of_answer
from llm_pipeline.protocol.model_info import ChatFormat


@dataclass(frozen=True)
class Dialect:
    """How a model writes calls and reasoning.

    `knows_tools`: its templates describe tools. `markers` is None if it does not reason, or if that stays content.
    """

    tool_format: ToolFormat
    knows_tools: bool
    markers: ReasoningMarkers | None
    special_tokens: tuple[str, ...]

    @classmethod
    def of(cls, chat_format: ChatFormat, *, tool_format: str, separates_reasoning: bool) -> Dialect:
        """The dialect of a model with these templates. `tool_format` is a name of FORMATS, or "auto"."""
        sources = [source for _, source in chat_format.templates]
        markers = markers_of(sources) if separates_reasoning else None
        return cls(format_of(sources, tool_format), knows_tools(sources), markers, chat_format.special_tokens)


def plan_of(request: ChatCompletionRequest, dialect: Dialect, prompt: RenderedPrompt) -> AnswerPlan:
    """The plan of the answer. Raises PipelineError (400) for tools whose guide would be too long."""
    rules, markers = _rules(request, dialect), dialect.markers
    if rules is None and markers is None:
        return PLAIN_TEXT
    is_in_reasoning = markers is not None and ends_in_reasoning(prompt.text, markers)
    own = next(iter(request.guides.items()), None)
    guide = guide_of_answer(rules, None if own is None else own[1], markers, is_in_reasoning=is_in_reasoning)

    def new_parser() -> AnswerParser:
        calls = None if rules is None else _call_parser(rules)
        if markers is None:
            assert calls is not None
            return calls
        return ReasoningAnswerParser(ReasoningSplitter(markers, is_inside=is_in_reasoning), calls)

    plan = AnswerPlan(new_parser, guide, "tools" if rules is not None or own is None else own[0])
    return _with_special_tokens(plan, new_parser, request, rules, dialect)


def _rules(request: ChatCompletionRequest, dialect: Dialect) -> CallRules | None:
    """The rules of the calls; None if there may be none."""
    choice = request.tool_use
    if choice.use is ToolUse.NONE:
        return None
    tools = request.tools.tools
    if choice.name is not None:
        tools = tuple(tool for tool in tools if tool["function"]["name"] == choice.name)
    return CallRules(
        dialect.tool_format,
        tools,
        request.tools.strict,
        is_required=choice.use is ToolUse.REQUIRED,
        only_one=choice.name is not None or not request.parallel_tool_calls,
    )


def _call_parser(rules: CallRules) -> ToolCallParser:
    names = frozenset(tool["function"]["name"] for tool in rules.tools)
    return ToolCallParser(rules.tool_format, names, lambda: new_call_id(rules.tool_format), only_one=rules.only_one)


def _with_special_tokens(
    plan: AnswerPlan,
    new_parser: Callable[[], AnswerParser],
    request: ChatCompletionRequest,
    rules: CallRules | None,
    dialect: Dialect,
) -> AnswerPlan:
    """The plan with special tokens in the text, if some of the markers are special tokens."""
    markers = {dialect.markers.start, dialect.markers.end} if dialect.markers is not None else set()
    if rules is not None:
        markers |= {rules.tool_format.start, rules.tool_format.end, rules.tool_format.named_by}
    if markers.isdisjoint(dialect.special_tokens):
        return plan
    if not request.skip_special_tokens:
        return replace(plan, needs_special_tokens=True)
    hidden = without_special_tokens(dialect.special_tokens, frozenset(markers))
    return replace(plan, new_parser=lambda: SpecialTokenFilter(new_parser(), hidden), needs_special_tokens=True)
