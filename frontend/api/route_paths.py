"""The paths that the front end serves, and which of them require no API key."""

from __future__ import annotations

COMPLETIONS = ("/openai/v1/completions", "/v1/completions")
CHAT = ("/openai/v1/chat/completions", "/v1/chat/completions")
MODELS = ("/openai/v1/models", "/v1/models")
HEALTH_ROOTS = ("/health", "/openai/health")
METRICS = "/metrics"
ENGINE_METRICS = "/metrics/engine"
OPENAPI = "/openai/openapi.json"
DOCS = "/docs"
SCHEMAS = "/openai/schemas/"
PLAYGROUND = "/"
PLAYGROUND_FILES = "/playground/"

_HEALTH = frozenset(root + end for root in HEALTH_ROOTS for end in ("", "/live", "/ready"))
_OPERATIONS = {**dict.fromkeys(COMPLETIONS, "completions"), **dict.fromkeys(CHAT, "chat")}
_PUBLIC = {OPENAPI, DOCS, PLAYGROUND, *_HEALTH}
_PUBLIC_ROOTS = (SCHEMAS, PLAYGROUND_FILES)


def is_public(path: str, *, metrics_needs_key: bool, engine_metrics_need_key: bool = False) -> bool:
    """Whether a request requires no API key. Unknown paths require one, so that scanning them reveals nothing."""
    if path == METRICS:
        return not metrics_needs_key
    if path == ENGINE_METRICS:
        return not engine_metrics_need_key
    return path in _PUBLIC or path.startswith(_PUBLIC_ROOTS)


def operation_of(path: str) -> str | None:
    """The name of the operation of the API that this path serves: `completions` or `chat`; None for other paths."""
    return _OPERATIONS.get(path)


def is_health(path: str) -> bool:
    """Whether this is the path of a liveness or readiness probe."""
    return path in _HEALTH


def is_requested_by_address(path: str) -> bool:
    """Whether machines request this path under the address of a pod, which changes: no name can be required."""
    return path in _HEALTH or path == ENGINE_METRICS


def is_probe(path: str) -> bool:
    """Whether this path is polled by machines: health and metrics."""
    return path in _HEALTH or path in (METRICS, ENGINE_METRICS)
