"""llguidance's problems in our own words: its messages name its options and states, which clients can't change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llm_pipeline.guides.schemas.keywords import Path, Schema, children_of
from llm_pipeline.guides.schemas.refusals import place_of, quoted

_PATTERN = "the pattern can't be used"
_MAX_TRIALS = 64  # of parts of a schema
_TOO_COMPLEX = "it is too complex. Simplify it, for example repeats within repeats, or long alternatives."

# Parts of messages, and ours. regex-syntax parses regular expressions (regex-syntax/src/ast/mod.rs, `ErrorKind`).
_EXPRESSION_PROBLEMS: Sequence[tuple[str, str]] = (
    ("look-around", "look-ahead and look-behind are not supported. Write the expression without them."),
    ("backreference", "back-references are not supported. Repeat the expression instead."),
    ("unclosed group", "a `(` is not closed. Close it, or write `\\(` for the character."),
    ("unopened group", "a `)` has no `(` before it. Write `\\)` for the character."),
    ("unclosed character class", "a `[` is not closed. Close it, or write `\\[` for the character."),
    ("character class range", "a range in `[...]` ends before it starts. Swap its ends."),
    ("missing expression", "a repetition (`*`, `+`, `?` or `{...}`) has nothing to repeat. Write `\\` before it."),
    ("repetition", "a repetition `{...}` is not valid. Write `{2}`, `{2,}` or `{2,5}`, or `\\{` for the character."),
    ("unrecognized escape", "an escape is unknown. Write `\\` only before characters with a special meaning."),
    ("incomplete escape", "it ends in a single `\\`. Write `\\\\` for the character."),
    ("Unicode property", "a `\\p{...}` names no property of Unicode. Write a class such as `[a-z]`."),
    ("flag", "a flag in `(?...)` is not supported. Write the expression without it."),
    ("nest", "it is nested too deeply. Write fewer groups."),
    ("too big", _TOO_COMPLEX),
    ("limit", _TOO_COMPLEX),
    ("large", _TOO_COMPLEX),
)
_OTHER_EXPRESSION = (
    "its syntax is not supported. Write it in that of Rust's regex crate, with `^` and `$` at its ends only."
)
_SCHEMA_PROBLEMS: Sequence[tuple[str, str]] = (
    ("Unsatisfiable", "no value can match this. Check limits, constants and required properties against each other."),
    ("min/maxProperties", "minProperties and maxProperties need all properties to be required. Require them."),
    ("circular", "a recursive $ref has other keywords beside it. Put them into its definition."),
    ("recursion limit", "it is nested too deeply. Put the inner schemas into $defs."),
    ("stack level", "it is nested too deeply. Put the inner schemas into $defs."),
    ("patternProperties", "a name may match two of the patterns. Write patterns that exclude each other."),
    ("Unknown format", "this format is not supported by the engine. Write a pattern, or omit it."),
    ("oneOf", "oneOf is followed only if its alternatives exclude each other. Write anyOf."),
    ("emptiness", "the pattern is too complex. Simplify it, for example without minLength beside it."),
    ("is empty", "the pattern is too complex. Simplify it, for example without minLength beside it."),
    ("limit", _TOO_COMPLEX),
    ("too large", _TOO_COMPLEX),
    ("too many", _TOO_COMPLEX),
)
_OTHER_SCHEMA = "this combination of keywords is not supported. Write it with type, properties, items, enum and anyOf."
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: \[\"([$\w-]+)\"")
_LINE_OF_GRAMMAR = re.compile(r"^(?:at )?(\d+)\((\d+)\)")
_UNKNOWN_NAME = re.compile(r"(?:unknown name|not found|undefined)[^\"'`]*[\"'`]?([\w-]+)", re.IGNORECASE)


def expression_problem(message: str) -> str:
    """Returns the problem of a regular expression."""
    return _translated(message, _EXPRESSION_PROBLEMS, _OTHER_EXPRESSION)


def schema_problem(message: str) -> str:
    """Returns the problem of a schema, or of a pattern in it."""
    if "regex" in message and "Unsatisfiable" not in message and "Unable to determine" not in message:
        return f"{_PATTERN}: {expression_problem(message)}"
    if (key := _UNIMPLEMENTED.search(message)) is not None:
        return f"{key[1]} is not supported by the engine. Remove it."
    return _translated(message, _SCHEMA_PROBLEMS, _OTHER_SCHEMA)


def grammar_problem(message: str) -> str:
    """Returns the problem of a grammar, with the line or the name that it is about."""
    if (name := _UNKNOWN_NAME.search(message)) is not None:
        return f"the rule {quoted(name[1])} is not defined."
    place = _LINE_OF_GRAMMAR.match(message.strip())
    where = f"in line {place[1]}, column {place[2]}, " if place is not None else ""
    if "regex" in message:
        return f"{where}a regular expression can't be used: {expression_problem(message)}"
    if "limit" in message or "too" in message:
        return _TOO_COMPLEX
    return f"{where or 'somewhere '}it is neither GBNF (`root ::= ...`) nor Lark (`start: ...`)."


def mask_problem(message: str) -> str:
    """Returns the problem of a guide that was compiled and can't be followed to its end."""
    if "satisfy" in message or "not allowed" in message:
        return "the text has a token that it does not allow."
    if "NoExtension" in message:
        return "the model's tokenizer has no tokens for the text that it demands."
    return f"the text can't be continued under it: {_TOO_COMPLEX}"


def located(document: Schema, origins: Mapping[int, Path], problem_of: Callable[[Schema], str]) -> str:
    """Returns the problem of a schema that llguidance rejects, with its smallest part that it rejects by itself.

    `problem_of` returns llguidance's message, or "" for a schema that it accepts.
    """
    definitions = document.get("$defs", {})
    message, part, trials = problem_of(document), document, 0
    seen = set()
    is_found = True
    while is_found and trials < _MAX_TRIALS:
        is_found = False
        for child in _parts(part, definitions):
            if id(child) in seen or trials >= _MAX_TRIALS:
                continue
            seen.add(id(child))
            trials += 1
            if child_message := problem_of({**child, "$defs": definitions}):
                message, part, is_found = child_message, child, True
                break
    problem = schema_problem(message)
    path = origins.get(id(part), ())
    if problem.startswith(_PATTERN):
        path = (*path, "pattern" if "pattern" in part else "patternProperties")
    return f"{place_of(path)}: {problem}"


def _parts(schema: Schema, definitions: Mapping[str, Any]) -> Iterator[Schema]:
    for _, _, _, child in children_of(schema):
        if isinstance(child, dict):
            yield child
    reference = schema.get("$ref")
    target = definitions.get(reference.removeprefix("#/$defs/")) if isinstance(reference, str) else None
    if isinstance(target, dict):
        yield target


def _translated(message: str, problems: Sequence[tuple[str, str]], other: str) -> str:
    return next((ours for part, ours in problems if part in message), other)
