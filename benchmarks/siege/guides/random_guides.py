"""Random guides: JSON schemas, expressions, grammars, choices and mixes of them, valid and invalid ones.

Each function expands a small grammar of its notation. The source of randomness is a parameter, so that a seed repeats a
guide, and hypothesis can shrink one (tests/support/guide_strategies.py).
"""

from __future__ import annotations

import string
from collections.abc import Callable
from random import Random
from typing import Any

import orjson

Fields = dict[str, Any]

_LETTERS = string.ascii_lowercase
_FORMATS = (
    "date",
    "time",
    "date-time",
    "uuid",
    "email",
    "ipv4",
    "ipv6",
    "hostname",
    "uri",
    "duration",
    "no-such-format",
)
_UNICODE = ("é", "ß", "日本", "😀", "\u0000", "\u202e", "\ud7ff", "\t", '"', "\\", "</s>", "<|endoftext|>")
_NUMBERS = (0, 1, -1, 7, 100, 0.5, 1e-9, 1e308, -(2**63), 2**64, 10**30)


def json_schema(random: Random, depth: int = 4) -> Any:
    """Returns a JSON schema; some have a value of the wrong type, an unknown keyword or an unresolved reference."""
    if depth <= 0:
        return _scalar(random)
    parts: tuple[tuple[int, Callable[[Random, int], Any]], ...] = (
        (4, lambda source, _: _scalar(source)),
        (4, _object),
        (3, _array),
        (2, _combined),
        (1, _referring),
        (1, _odd),
    )
    (_, part) = random.choices(parts, [weight for weight, _ in parts])[0]
    return part(random, depth - 1)


def _scalar(random: Random) -> Any:
    kind = random.randrange(8)
    if kind == 0:
        return {"type": "string", **_some(random, minLength=_count(random), maxLength=_count(random) + 5)}
    if kind == 1:
        return {"type": "string", "pattern": expression(random, 2)}
    if kind == 2:
        return {"type": "string", "format": random.choice(_FORMATS)}
    if kind == 3:
        limits = _some(random, minimum=random.choice(_NUMBERS), maximum=random.choice(_NUMBERS))
        return {"type": random.choice(["integer", "number"]), **limits}
    if kind == 4:
        return {"type": random.choice(["integer", "number"]), "multipleOf": random.choice([1, 3, 97, 0.1, 1009, 0])}
    if kind == 5:
        return {"enum": [_value(random) for _ in range(random.randrange(1, 6))]}
    if kind == 6:
        return {"const": _value(random)}
    return {"type": random.choice(["boolean", "null", ["string", "null"], ["integer", "boolean"]])}


def _object(random: Random, depth: int) -> Any:
    names = [text(random) for _ in range(random.randrange(0, 5))]
    schema: Fields = {"type": "object", "properties": {name: json_schema(random, depth) for name in names}}
    schema |= _some(
        random,
        required=names[: random.randrange(0, len(names) + 1)],
        additionalProperties=random.choice([True, False, {"type": "integer"}]),
        patternProperties={expression(random, 1): json_schema(random, depth - 1)},
        minProperties=random.randrange(0, 3),
        maxProperties=random.randrange(0, 9),
    )
    return schema


def _array(random: Random, depth: int) -> Any:
    schema: Fields = {"type": "array", "items": json_schema(random, depth)}
    schema |= _some(
        random,
        minItems=_count(random),
        maxItems=_count(random) + 3,
        prefixItems=[json_schema(random, depth - 1) for _ in range(random.randrange(0, 3))],
        uniqueItems=True,
    )
    return schema


def _combined(random: Random, depth: int) -> Any:
    parts = [json_schema(random, depth) for _ in range(random.randrange(1, 4))]
    return {random.choice(["anyOf", "oneOf", "allOf"]): parts}


def _referring(random: Random, depth: int) -> Any:
    names = [f"d{number}" for number in range(random.randrange(1, 4))]
    targets = [*names, "missing"] if random.random() < 0.2 else names
    links = {name: {"anyOf": [json_schema(random, depth), _reference(random, targets)]} for name in names}
    return {"type": "object", "properties": {"link": _reference(random, targets)}, "$defs": links, "definitions": links}


def _reference(random: Random, names: list[str]) -> Any:
    return {"$ref": f"#/{random.choice(['$defs', 'definitions'])}/{random.choice(names)}"}


def _odd(random: Random, depth: int) -> Any:
    """Rare and invalid schemas."""
    return random.choice(
        [
            True,
            False,
            {},
            {"type": "no-such-type"},
            {"not": json_schema(random, depth - 1)},
            {"if": json_schema(random, depth - 1), "then": json_schema(random, depth - 1)},
            {"type": "string", "pattern": 7},
            {"properties": []},
            {"type": "array", "minItems": -1},
            {"anyOf": []},
            {"enum": []},
            {"$ref": "https://example.com/other.json"},
            {"$ref": "#"},
        ]
    )


def expression(random: Random, depth: int = 4) -> str:
    """Returns a regular expression; some use what automata can't do, or are not well formed."""
    if depth <= 0:
        return _atom(random)
    kind = random.randrange(7)
    if kind == 0:
        return "".join(expression(random, depth - 1) for _ in range(random.randrange(1, 4)))
    if kind == 1:
        return f"({'|'.join(expression(random, depth - 1) for _ in range(random.randrange(1, 5)))})"
    if kind in (2, 3):
        low = _count(random)
        repeat = random.choice(["*", "+", "?", "*?", f"{{{low}}}", f"{{{low},}}", f"{{{low},{low + _count(random)}}}"])
        return f"(?:{expression(random, depth - 1)}){repeat}"
    if kind == 4:
        return f"({expression(random, depth - 1)})"
    if kind == 5 and random.random() < 0.2:
        return random.choice(["(?=a)", r"(a)\1", "(?<!b)", "(", "[z-a]", "a{3,1}", r"\p{Nope}", "(?P<x>a)", "*", r"\b"])
    return _atom(random)


def _atom(random: Random) -> str:
    atoms = (
        random.choice(_LETTERS),
        ".",
        r"\d",
        r"\w",
        r"\s",
        r"[^a-f]",
        "[a-z0-9_]",
        "日",
        r"\u00e9",
        r"\.",
        "^",
        "$",
    )
    return random.choice(atoms)


def grammar(random: Random) -> str:
    """Returns a grammar in Lark's notation or in GBNF; some refer to a missing rule or recurse on the left."""
    is_lark = random.random() < 0.5
    names = [f"rule{number}" for number in range(random.randrange(0, 6))]
    start, sign, end = ("start", ":", "") if is_lark else ("root", "::=", "")
    known = [*names, "missing"] if random.random() < 0.1 else names
    lines = []
    for name in (start, *names):
        bodies = " | ".join(_sequence(random, known, is_lark=is_lark) for _ in range(random.randrange(1, 5)))
        lines.append(f"{name}{sign} {bodies}{end}" if is_lark else f"{name} {sign} {bodies}{end}")
    if random.random() < 0.05:
        lines.append(random.choice(["%import common.NUMBER", "%ignore / /", "}{", "x ="]))
    return "\n".join(lines)


def _sequence(random: Random, names: list[str], *, is_lark: bool) -> str:
    items = []
    for _ in range(random.randrange(1, 4)):
        kind = random.randrange(4)
        if kind == 0 and names:
            item = random.choice(names)
        elif kind == 1:
            item = f"/{expression(random, 2).replace('/', '')}/" if is_lark else "[a-z0-9]"
        else:
            item = orjson.dumps(text(random) or "x").decode()
        items.append(item + random.choice(["", "", "", "*", "+", "?"]))
    return " ".join(items)


def choices(random: Random) -> list[str]:
    """Returns a list of choices; some are empty, equal, or beginnings of each other."""
    words = [text(random) * random.choice([1, 1, 1, 40]) for _ in range(random.choice([1, 2, 5, 50, 1024]))]
    return words + ([words[0][:1], words[0]] if random.random() < 0.2 else [])


def text(random: Random) -> str:
    """Returns a short text, sometimes with characters that need care."""
    word = "".join(random.choice(_LETTERS) for _ in range(random.randrange(0, 8)))
    return word + random.choice(_UNICODE) if random.random() < 0.2 else word or "a"


def _value(random: Random) -> Any:
    return random.choice([text(random), random.choice(_NUMBERS[:8]), True, None, [text(random)], {text(random): 1}])


def _count(random: Random) -> int:
    return random.choice([0, 1, 2, 3, 5, 9, 40, 300, 5000])


def _some(random: Random, **keywords: Any) -> Fields:
    return {name: value for name, value in keywords.items() if random.random() < 0.3}


def _schema_fields(random: Random) -> Fields:
    return {"guided_json": json_schema(random)}


def _expression_fields(random: Random) -> Fields:
    return {"guided_regex": expression(random)}


def _grammar_fields(random: Random) -> Fields:
    return {"guided_grammar": grammar(random)}


def _choice_fields(random: Random) -> Fields:
    return {"guided_choice": choices(random)}


def _mixed_fields(random: Random) -> Fields:
    """Every field that takes a guide, schemas as text, damaged text, and fields that exclude each other."""
    schema = json_schema(random)
    as_text = orjson.dumps(schema, option=orjson.OPT_NON_STR_KEYS).decode() if _is_encodable(schema) else "{}"
    return random.choice(
        [
            {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}},
            {"response_format": {"type": "json_object"}, "guided_regex": expression(random, 2)},
            {"structured_outputs": {"json": schema}},
            {"structured_outputs": {"regex": expression(random), "grammar": None}},
            {"structured_outputs": {"grammar": grammar(random)}},
            {"structured_outputs": {"choice": choices(random)}},
            {"guided_json": as_text},
            {"guided_json": as_text[: random.randrange(0, len(as_text) + 1)]},
            {"guided_json": schema, "guided_choice": choices(random)},
            {"guided_grammar": f'start: x\nx: /{expression(random, 3)}/ x | "a"'},
        ]
    )


def _is_encodable(schema: Any) -> bool:
    try:
        orjson.dumps(schema)
    except orjson.JSONEncodeError:  # an integer beyond 64 bits
        return False
    return True


SORTS: dict[str, Callable[[Random], Fields]] = {
    "JSON schemas": _schema_fields,
    "expressions": _expression_fields,
    "grammars": _grammar_fields,
    "choices": _choice_fields,
    "mixed fields": _mixed_fields,
}


def random_fields(sort: str, seed: int, number: int) -> Fields:
    """Returns the request fields of one random guide. Equal arguments give equal guides."""
    return SORTS[sort](Random(f"{sort} {seed} {number}"))
