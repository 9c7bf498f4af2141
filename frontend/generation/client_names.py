"""Names fields in errors as the client did, whose field may have another name than the pipeline's."""

from __future__ import annotations

import re

from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import GUIDE_PARAM, PROMPT_PARAM, TOKEN_LIMIT_PARAM, CompletionParameters

_TOKEN_LIMIT = re.compile(rf"\b{TOKEN_LIMIT_PARAM}\b")
_GUIDE_PARAMS = (GUIDE_PARAM, "guide")


def in_client_terms(error: PipelineError, parameters: CompletionParameters) -> PipelineError:
    """The same error with the client's names in `param` and the message."""
    if error.param in _GUIDE_PARAMS:
        return error.with_param(parameters.guide_param)
    if error.param == PROMPT_PARAM != parameters.prompt_param:
        error = error.with_param(parameters.prompt_param)
    name = parameters.token_limit_param
    if name == TOKEN_LIMIT_PARAM or not _TOKEN_LIMIT.search(error.message):
        return error
    return PipelineError(
        error.code,
        _TOKEN_LIMIT.sub(name, error.message),
        param=name if error.param == TOKEN_LIMIT_PARAM else error.param,
        retry_after_s=error.retry_after_s,
    )
