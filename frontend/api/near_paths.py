"""The router's 404 and 405: a path that does not exist gets the one that was probably meant, OPTIONS its methods."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from frontend.api import route_paths as paths
from frontend.observability.request_record import record_of
from frontend.response.errors import as_pipeline_error, error_response
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

# The last words of a path -> the path that has them. Where there are two, the words before them decide (`_meant`).
_SERVED = {
    "chat/completions": paths.CHAT,
    "chat/completion": paths.CHAT,
    "api/chat": paths.CHAT,  # Ollama's
    "chat": paths.CHAT,
    "completions": paths.COMPLETIONS,
    "completion": paths.COMPLETIONS,
    "complete": paths.COMPLETIONS,
    "generate": paths.COMPLETIONS,
    "models": paths.MODELS,
    "health": ("/health/ready",),
    "healthz": ("/health/ready",),
    "ready": ("/health/ready",),
    "readyz": ("/health/ready",),
    "live": ("/health/live",),
    "livez": ("/health/live",),
    "ping": ("/health/live",),
    "metrics": (paths.METRICS,),
    "docs": (paths.DOCS,),
    "redoc": (paths.DOCS,),
    "swagger": (paths.DOCS,),
    "openapi.json": (paths.OPENAPI,),
    "swagger.json": (paths.OPENAPI,),
    "playground": (paths.PLAYGROUND,),
    "index.html": (paths.PLAYGROUND,),
}
# APIs that clients of completions servers know, and this server does not have.
_OTHER_APIS = {
    "responses": "the Responses API",
    "messages": "the Messages API",
    "embeddings": "embeddings",
    "rerank": "reranking",
    "score": "scoring",
    "tokenize": "tokenization",
    "detokenize": "detokenization",
    "moderations": "moderations",
    "audio/transcriptions": "transcriptions",
    "images/generations": "images",
}


async def handle_router_error(request: Request, error: Exception) -> Response:
    """The exception handler of the router's 404 and 405."""
    status = error.status_code if isinstance(error, HTTPException) else 0
    if status == 405 and request.method == "OPTIONS":
        allow = ((error.headers or {}).get("Allow") or "") if isinstance(error, HTTPException) else ""
        return Response(status_code=204, headers={"Allow": f"{allow}, OPTIONS"})
    failure = PipelineError(ErrorCode.NOT_FOUND, not_found_message(request.url.path)) if status == 404 else error
    return error_response(as_pipeline_error(failure), record_of(request.scope))


def not_found_message(path: str) -> str:
    """The message for a path that does not exist. It contains no part of the path itself."""
    words = [word for word in path.lower().split("/") if word]
    for count in (2, 1):
        api = _OTHER_APIS.get("/".join(words[-count:]))
        if api is not None and len(words) >= count:
            return (
                f"This server does completions and chat, not {api}. Send a prompt to "
                f"{_meant(words, paths.COMPLETIONS)} or messages to {_meant(words, paths.CHAT)}."
            )
    if words[-2:-1] == ["models"]:
        return f"This path does not exist. Did you mean {_meant(words, paths.MODELS)}/{{model}}?"
    served = _SERVED.get("/".join(words[-2:])) or _SERVED.get(words[-1] if words else "")
    if served is None:
        return f"This path does not exist. See {paths.OPENAPI}."
    return f"This path does not exist. Did you mean {_meant(words, served)}?"


def _meant(words: list[str], served: tuple[str, ...]) -> str:
    """The path below /openai if the client's path has that word, else its alias."""
    return served[0] if "openai" in words else served[-1]
