"""Checks of operators, methods and filters that make a long value of a short one: the length of the result comes first.

The checks raise ChatTemplateError. They get the arguments as the template wrote them, which may be of any type.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llm_pipeline.chat_templates.meter import MAX_CHARACTERS, ChatTemplateError, measure, require_length, too_large

_MAX_INTEGER_BITS = 4096


def _check_plus(left: Any, right: Any) -> None:
    if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        require_length(len(left) + len(right))


def _check_times(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS:
            raise too_large()
    elif isinstance(right, int) and isinstance(left, (str, list, tuple)):
        require_length(len(left) * max(right, 0))
    elif isinstance(left, int) and isinstance(right, (str, list, tuple)):
        require_length(len(right) * max(left, 0))


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * max(right, 0) > _MAX_INTEGER_BITS:
        raise too_large()


def _check_percent(left: Any, right: Any) -> None:
    if isinstance(left, str):
        require_widths(left)
        arguments = right if isinstance(right, tuple) else (right,)
        if "*" in left:
            require_numbers(*arguments)
        written = measure(right) if isinstance(right, (dict, list, tuple)) else measure([right])
        require_length(len(left) + left.count("%") * written)


OPERATOR_CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "+": _check_plus,
    "*": _check_times,
    "**": _check_power,
    "%": _check_percent,
}


def require_widths(form: str) -> None:
    """Checks the widths and precisions in a format."""
    require_numbers(*(int(digits[:20]) for digits in re.findall(r"\d+", form)))


def require_numbers(*values: Any) -> None:
    for value in values:
        if isinstance(value, (int, float)):
            require_length(int(min(abs(value), MAX_CHARACTERS + 1)))


def _check_width(owner: str, width: Any = 0, *_: Any) -> None:
    require_numbers(width)
    if isinstance(width, int):
        require_length(len(owner) + owner.count("\t") * abs(width))


def _check_replace(owner: str, old: Any = "", new: Any = "", *_: Any) -> None:
    if isinstance(old, str) and isinstance(new, str) and len(new) > len(old):
        require_length(len(owner) + owner.count(old) * (len(new) - len(old)))


def _check_join(owner: str, values: Any = (), *_: Any) -> None:
    if isinstance(values, (str, list, tuple, dict)):
        require_length(measure(list(values)) + len(owner) * len(values))


def _check_translate(owner: str, table: Any = (), *_: Any) -> None:
    raise ChatTemplateError("str.translate is not supported in a template")


METHOD_CHECKS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("ljust", "rjust", "center", "zfill", "expandtabs"), _check_width),
    "replace": _check_replace,
    "join": _check_join,
    "translate": _check_translate,
}


def _check_format_filter(value: Any, *args: Any) -> None:
    _check_percent(value, args)


def _check_numbers(value: Any, *args: Any) -> None:
    require_numbers(*args)


def _check_indent(value: Any, width: Any = 4, *args: Any) -> None:
    require_numbers(width)
    step = width if isinstance(width, int) else measure(width)
    text = value if isinstance(value, str) else ""
    require_length(len(text) + (text.count("\n") + 1) * step)


def _check_replace_filter(value: Any, old: Any = "", new: Any = "", *_: Any) -> None:
    _check_replace(value if isinstance(value, str) else "", old, new)


def _check_join_filter(value: Any, separator: Any = "", *_: Any) -> None:
    if isinstance(value, (list, tuple, dict)) and isinstance(separator, str):
        _check_join(separator, value)


FILTER_CHECKS: dict[str, Callable[..., None]] = {
    "batch": _check_numbers,
    "center": _check_numbers,
    "format": _check_format_filter,
    "indent": _check_indent,
    "join": _check_join_filter,
    "replace": _check_replace_filter,
    "round": _check_numbers,
    "slice": _check_numbers,
    "wordwrap": _check_numbers,
}
