"""Every path that the front end serves, and which of them are open to everybody."""

from __future__ import annotations

COMPLETIONS = ("/openai/v1/completions", "/v1/completions")
MODELS = ("/openai/v1/models", "/v1/models")
HEALTH_ROOTS = ("/health", "/openai/health")
METRICS = "/metrics"
OPENAPI = "/openai/openapi.json"
DOCS = "/docs"
SCHEMAS = "/openai/schemas/"
PLAYGROUND = "/"
PLAYGROUND_FILES = "/playground/"

_HEALTH = frozenset(root + end for root in HEALTH_ROOTS for end in ("", "/live", "/ready"))
_PUBLIC = {OPENAPI, DOCS, PLAYGROUND, *_HEALTH}
_PUBLIC_ROOTS = (SCHEMAS, PLAYGROUND_FILES)


def is_public(path: str, *, metrics_needs_key: bool) -> bool:
    """Whether a request needs no key. A path that does not exist needs one: a stranger learns nothing from it."""
    if path == METRICS:
        return not metrics_needs_key
    return path in _PUBLIC or path.startswith(_PUBLIC_ROOTS)


def is_completions(path: str) -> bool:
    """Whether this is the path that completes prompts, under either name."""
    return path in COMPLETIONS


def is_probe(path: str) -> bool:
    """Whether machines ask this all the time: health, and metrics."""
    return path in _HEALTH or path == METRICS
