"""Guides that cost much to compile, or whose masks do: one function for each kind.

Each takes a source of randomness and a size in characters, and returns the request fields. Random numbers and letters
make every guide a new one, so that no cache of compiled guides helps. All were tried on llguidance 1.9: some compile
for minutes or take gigabytes without a limit, some hit its limits and are errors, and some are slow only at their size.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import orjson

Fields = dict[str, Any]
Make = Callable[[Random, int], Fields]

SMALL = 2_000  # characters
LARGE = 64 * 1024 - 512  # just below the limit of a guide
_MAX_RULES = 500
_MAX_NESTING = 500


def multiple_of(random: Random, _size: int) -> Fields:
    """A large `multipleOf`, or several that have a large common multiple: an automaton with a state for each rest."""
    if random.random() < 0.5:
        # Far larger ones are refused at once: llguidance stops after a million states.
        return {"guided_json": {"type": "integer", "multipleOf": random.randrange(500_000, 3_000_000) | 1}}
    several = [{"type": "integer", "multipleOf": random.randrange(60, 160) | 1} for _ in range(3)]
    return {"guided_json": {"allOf": several}}


def patterns_under_all_of(random: Random, size: int) -> Fields:
    """Patterns that a string must all match: their automata multiply."""
    count = max(4, min(size // 500, 100))
    patterns = [f"^.*{_letter(random)}.{{{random.randrange(3, 15)}}}{_letter(random)}.*$" for _ in range(count)]
    return {"guided_json": {"type": "string", "allOf": [{"pattern": pattern} for pattern in patterns]}}


def repeats_of_repeats(random: Random, size: int) -> Fields:
    """Bounded repeats of bounded repeats, in an expression or in arrays: a billion positions."""
    most = random.randrange(100, 250)
    if random.random() < 0.5:
        part = f"((({_letter(random)}{{1,{most}}}{_letter(random)}?){{1,{most}}}){{1,{most}}}){{1,{most}}}"
        return {"guided_regex": "|".join([part] * max(1, size // (2 * len(part))))}
    schema: Any = {"type": "string", "pattern": f"^({_letter(random)}{{1,{most}}}[b-y]{{3,{most}}}){{{most}}}$"}
    for _ in range(5):
        schema = {"type": "array", "minItems": most - 10, "maxItems": most, "items": schema}
    return {"guided_json": schema}


def left_recursion(random: Random, size: int) -> Fields:
    """Hundreds of alternatives behind left recursion: every position of the text may belong to each of them."""
    count = min(max(200, size // 60), _MAX_RULES - 10)
    words = [_word(random, 2) for _ in range(count)]
    heads = " | ".join(f"r{number}" for number in range(count))
    rules = "\n".join(f'r{number}: e "{word}" e | e /[a-z]*{word}/' for number, word in enumerate(words))
    return {"guided_grammar": f"start: e\ne: {heads} | e e | /[a-z ]+/\n{rules}"}


def union_of_objects(random: Random, size: int) -> Fields:
    """A union of hundreds of objects whose fields differ only late."""
    unique = _word(random, 6)
    objects: list[Any] = []
    for number in range(max(80, size // 250)):
        fields = {f"{unique}{field}": {"type": "string", "pattern": f"^[a-z]*{number}$"} for field in range(3)}
        objects.append({"type": "object", "properties": fields, "required": list(fields)})
    return {"guided_json": {"anyOf": objects}}


def pattern_properties(random: Random, size: int) -> Fields:
    """Thousands of properties with patterns, each to be compared with all others."""
    unique = _word(random, 4)
    count = max(50, size // 50)
    patterns = {f"^{unique}{number}_[a-z]*$": {"type": "integer"} for number in range(count)}
    return {"guided_json": {"type": "object", "patternProperties": patterns}}


def references_and_nesting(random: Random, _size: int) -> Fields:
    """A chain of 500 references, or 500 arrays in each other."""
    if random.random() < 0.5:
        names = [f"{_word(random, 4)}{number}" for number in range(_MAX_RULES)]
        links = {name: {"$ref": f"#/$defs/{after}"} for name, after in pairwise(names)}
        return {
            "guided_json": {"$ref": f"#/$defs/{names[0]}", "$defs": {**links, names[-1]: {"enum": [_word(random, 5)]}}}
        }
    inner = orjson.dumps({"enum": [_word(random, 8)]}).decode()
    nested = '{"type":"array","items":' * _MAX_NESTING + inner + "}" * _MAX_NESTING
    return {"guided_json": nested}  # as text: most JSON libraries refuse to nest a body that deep


def slow_masks(random: Random, _size: int) -> Fields:
    """Compiles in 15 ms; then each mask takes a second, because hundreds of expressions may go on at every token."""
    count = random.randrange(440, _MAX_RULES)
    heads = " | ".join(f"r{number}" for number in range(count))
    rules = "\n".join(f"r{number}: /[a-z ]*{_word(random, 2)}[a-z ]*{number}/" for number in range(count))
    return {"guided_grammar": f"start: ({heads})*\n{rules}"}


def small_and_new(random: Random, _size: int) -> Fields:
    """A cheap guide as honest clients send it, new each time."""
    name = _word(random, 8)
    return {"guided_json": {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]}}


KINDS: dict[str, Make] = {
    "multipleOf": multiple_of,
    "patterns under allOf": patterns_under_all_of,
    "repeats of repeats": repeats_of_repeats,
    "left recursion": left_recursion,
    "union of objects": union_of_objects,
    "pattern properties": pattern_properties,
    "references and nesting": references_and_nesting,
    "slow masks": slow_masks,
}


def any_kind(random: Random, size: int) -> Fields:
    """A guide of any kind."""
    return random.choice(list(KINDS.values()))(random, size)


def _letter(random: Random) -> str:
    return random.choice(string.ascii_lowercase)


def _word(random: Random, length: int) -> str:
    return "".join(_letter(random) for _ in range(length))
