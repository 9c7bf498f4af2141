"""GET / and its files: the playground, a page without a build step and without anything from elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from frontend.api import route_paths as paths
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

_PAGE = "index.html"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles from this server's files only, none inline; the page can talk to this server and to nobody else.
# Trusted Types forbid every way to read a string as markup: what a model writes stays text.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Kept by browsers, and asked about every time: a new version shows at once, and costs a 304 otherwise.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def routes() -> list[Route]:
    """The page and its files; GET and HEAD. The files are read once, when the app is made."""
    found = _read_files()
    return [
        Route(paths.PLAYGROUND, partial(_page, found[_PAGE])),
        Route(paths.PLAYGROUND_FILES + "{name}", partial(_file, found)),
    ]


def _read_files() -> dict[str, _File]:
    folder = files("frontend") / "playground"
    return {
        item.name: _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        for item in folder.iterdir()
        if (media_type := _MEDIA_TYPES.get(PurePath(item.name).suffix)) and (content := item.read_bytes())
    }


async def _page(page: _File, request: Request) -> Response:
    return _answer(page, request)


async def _file(found: dict[str, _File], request: Request) -> Response:
    name = request.path_params["name"]
    if name not in found or name == _PAGE:
        raise PipelineError(ErrorCode.NOT_FOUND, "The playground has no such file.")
    return _answer(found[name], request)


def _answer(file: _File, request: Request) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    known = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
    if file.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
