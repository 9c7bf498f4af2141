"""Patterns with look-ahead at their start, as patterns that llguidance follows. Others with look-around are refused.

Its regular expressions are those of Rust's regex crate, which have no look-around. Several patterns of one schema hold
together, so what a look-ahead at the start of a text demands can be a pattern of its own.
"""

from __future__ import annotations

import re

from llm_pipeline.guides.schemas.formats import pattern_of
from llm_pipeline.guides.schemas.keywords import Path
from llm_pipeline.guides.schemas.refusals import SchemaError

_LOOK_AROUND = re.compile(r"\(\?(?:[=!]|<[=!])")
_BACK_REFERENCE = re.compile(r"\\[1-9]|\(\?P=|\\k<")
_CLASS = r"(\[\^?(?:\\.|[^\\\]])+\]|\\.|[^\\\[\](){}|*+?.^$])"  # of one character
_ONLY_THESE = re.compile(rf"\^?{_CLASS}[*+]\$")
_STARTS_WITH = re.compile(_CLASS)
_HAS_ONE = re.compile(rf"\.\*{_CLASS}")
_HAS_TWICE = re.compile(rf"\.\*{_CLASS}\1")
_MAX_LOOK_AHEADS = 8  # of one pattern
_LOOK_AROUND_PROBLEM = "look-ahead and look-behind are supported only as {what}. Write the pattern without them."
_SUPPORTED = "`^(?=...)`, or `^(?!...)` with a simple expression, at the start of a pattern"
# zod's duration (packages/zod/src/v4/core/regexes.ts), which it writes beside the format of the same meaning.
_OF_ZOD = {
    r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$": "duration",
}


def without_look_ahead(pattern: str, path: Path) -> list[str]:
    """Returns patterns that hold together where this one does. Raises SchemaError if look-around remains."""
    if (name := _OF_ZOD.get(pattern)) is not None and (equivalent := pattern_of(name)) is not None:
        return [equivalent]
    if _BACK_REFERENCE.search(_without_escaped_backslashes(pattern)):
        raise SchemaError(path, "back-references are not supported. Repeat the expression instead.")
    if not _LOOK_AROUND.search(pattern):
        return [pattern]
    rest = pattern.removeprefix("^")
    demands: list[str] = []
    while (sign := rest[:3]) in ("(?=", "(?!"):
        end = _closing(rest)
        if end < 0 or len(demands) == _MAX_LOOK_AHEADS:
            raise _look_around(path)
        demand = _demanded(rest[3:end]) if sign == "(?=" else _forbidden(rest[3:end])
        if demand is None or (not pattern.startswith("^") and not rest[3:].startswith("^")):
            raise _look_around(path)
        demands.append(demand)
        rest = rest[end + 1 :]
    anchored = f"^{rest}" if pattern.startswith("^") and not rest.startswith("^") else rest
    if not demands or _LOOK_AROUND.search(anchored) or any(_LOOK_AROUND.search(demand) for demand in demands):
        raise _look_around(path)
    if _has_top_level_bar(rest):  # the look-aheads belong to the first alternative only
        raise _look_around(path)
    return [*demands, anchored]


def _look_around(path: Path) -> SchemaError:
    return SchemaError(path, _LOOK_AROUND_PROBLEM.format(what=_SUPPORTED))


def _demanded(expression: str) -> str:
    return f"^(?:{expression.removeprefix('^')})"


def _forbidden(expression: str) -> str | None:
    """Returns a pattern of the texts at whose start the expression does not match; None if it is not a simple one."""
    if (match := _ONLY_THESE.fullmatch(expression)) is not None:
        # The empty text has no other character, and `+` does not match it.
        other = _complement(match[1])
        return f"{other}" if expression[-2] == "*" else f"^$|{other}"
    if (match := _HAS_TWICE.fullmatch(expression)) is not None and (other := _complement(match[1])):
        return f"^(?:{other}|{match[1]}{other})*{match[1]}?$"
    if (match := _HAS_ONE.fullmatch(expression)) is not None:
        return f"^{_complement(match[1])}*$"
    if (match := _STARTS_WITH.fullmatch(expression.removeprefix("^"))) is not None:
        return f"^(?:{_complement(match[1])}|$)"
    return None


def _complement(one: str) -> str:
    """Returns the class of all other characters."""
    if one.startswith("[^"):
        return f"[{one[2:]}"
    return f"[^{one[1:]}" if one.startswith("[") else f"[^{one}]"


def _closing(expression: str) -> int:
    """Returns the index of the parenthesis that closes the first one; -1 if there is none."""
    depth, index, in_class = 0, 0, False
    while index < len(expression):
        character = expression[index]
        if character == "\\":
            index += 1
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                return index
        index += 1
    return -1


def _has_top_level_bar(expression: str) -> bool:
    return _closing(f"({expression})") == len(expression) + 1 and any(
        character == "|" for character in _outside_groups(expression)
    )


def _outside_groups(expression: str) -> str:
    """Returns the characters outside of groups and classes, without escaped ones."""
    left, index, depth, in_class = [], 0, 0, False
    while index < len(expression):
        character = expression[index]
        if character == "\\":
            index += 1
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif depth == 0:
            left.append(character)
        index += 1
    return "".join(left)


def _without_escaped_backslashes(pattern: str) -> str:
    return pattern.replace("\\\\", "")
