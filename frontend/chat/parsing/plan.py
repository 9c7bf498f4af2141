"""Chooses the parser and the guide of an answer by the request and the model's template."""

from __future__ import annotations

from frontend.chat.parsing.answer_parser import PLAIN_TEXT, AnswerPlan
from frontend.chat.schema import ChatCompletionRequest
from frontend.chat.template import RenderedPrompt
from frontend.chat.tool_fields import ToolUse
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.model_info import ChatFormat


def plan_of(request: ChatCompletionRequest, chat_format: ChatFormat, prompt: RenderedPrompt) -> AnswerPlan:
    """The plan of the answer. Raises PipelineError (400) for a tool choice that cannot be enforced."""
    if request.tool_use.use is ToolUse.REQUIRED:
        message = "A tool_choice that requires a call is not supported by this model. Use auto."
        raise PipelineError(ErrorCode.UNSUPPORTED_PARAMETER, message, param="tool_choice")
    if request.tools.strict:
        message = "Tools with strict=true are not supported by this model. Omit strict."
        raise PipelineError(ErrorCode.UNSUPPORTED_PARAMETER, message, param="tools")
    return PLAIN_TEXT
