"""GET / and its files: the playground, a page without a build step or external resources."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import HTMLResponse
from starlette.responses import Response

from frontend.api import route_paths as paths
from frontend.api.openapi import PUBLIC, READ_METHODS, error_responses
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

router = APIRouter()

_PAGE = "index.html"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles come from this server's files only, none inline, and the page can connect to this server only.
# Trusted Types forbid every way to parse a string as markup: text that a model generates stays text.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    # Browsers keep the files and revalidate them on each use: a new version shows at once, an old one costs a 304.
    "Cache-Control": "no-cache",
}
_ETAG_HEADER: dict[str, Any] = {"ETag": {"schema": {"type": "string"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"headers": _ETAG_HEADER},
    304: {"description": "The browser's copy is current", "headers": _ETAG_HEADER},
}
_FILE_CONTENT = {media: {"schema": {"type": "string"}} for media in ("text/css", "image/svg+xml")}

_IfNoneMatch = Annotated[str, Header(alias="If-None-Match", description="The ETags of the browser's copies")]


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


class ScriptResponse(Response):
    """The most frequent media type of the playground's files, for the OpenAPI document."""

    media_type = "text/javascript"


@router.api_route(
    paths.PLAYGROUND,
    name="get",
    methods=READ_METHODS,
    summary="Playground",
    response_description="The playground's page",
    response_class=HTMLResponse,
    responses={**_RESPONSES, **error_responses(405)},
    openapi_extra=PUBLIC,
)
async def get_page(if_none_match: _IfNoneMatch = "") -> Response:
    """A page to try completions with."""
    return _response(load_files()[_PAGE], if_none_match)


@router.api_route(
    paths.PLAYGROUND_FILES + "{name}",
    name="get",
    methods=READ_METHODS,
    summary="File of the playground",
    response_description="The file",
    response_class=ScriptResponse,
    responses={**_RESPONSES, 200: {**_RESPONSES[200], "content": _FILE_CONTENT}, **error_responses(404, 405)},
    openapi_extra=PUBLIC,
)
async def get_file(name: str, if_none_match: _IfNoneMatch = "") -> Response:
    """A script, style sheet or icon that the page refers to."""
    file = load_files().get(name)
    if file is None or name == _PAGE:
        raise PipelineError(ErrorCode.NOT_FOUND, "The playground has no file of this name.")
    return _response(file, if_none_match)


@cache
def load_files() -> dict[str, _File]:
    """Reads the files into memory once, so that an upgrade on disk does not mix versions."""
    folder = files("frontend") / "playground"
    return {
        item.name: _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        for item in folder.iterdir()
        if (media_type := _MEDIA_TYPES.get(PurePath(item.name).suffix)) and (content := item.read_bytes())
    }


def _response(file: _File, if_none_match: str) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    known_etags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    if file.etag in known_etags:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
