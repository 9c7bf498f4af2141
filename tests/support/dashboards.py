"""Grafana's variables in an expression, replaced as Grafana does."""

from __future__ import annotations


def answerable(expression: str, *, release: str = ".*", window: str = "10s") -> str:
    """The expression with all namespaces and models, one release or all, and one range."""
    variables = {
        "$__rate_interval": window,
        "$__range": window,
        "$namespace": ".*",
        "$release": release,
        "$model": ".*",
    }
    for name, value in variables.items():
        expression = expression.replace(name, value)
    return expression
