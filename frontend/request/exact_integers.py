"""Reads int64 fields exactly. The JSON parser makes doubles of integers beyond 64 bits, and of `1e18` or `5.0`.

Doubles beyond 2^53 stand for several integers: -9223372036854775809 and -9223372036854775808 are the same one. So a
body with such a number in such a field is parsed again. That is rare, and takes a few times as long.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from llm_pipeline.protocol.field_kinds import NumberField
from llm_pipeline.protocol.fields import FIELDS

_EXACT_DOUBLES = 2**53
_FIELDS = tuple(
    field.param or field.name
    for field in FIELDS
    if isinstance(field, NumberField) and field.range is not None and field.range.high > _EXACT_DOUBLES
)


def with_exact_integers(document: dict[str, Any], body: bytes) -> dict[str, Any]:
    """The document of a body that was parsed without an error, with the int64 fields as the integers in the text.

    A number with a fraction stays a Decimal, which is invalid for an integer field.
    """
    inexact = [name for name in _FIELDS if type(value := document.get(name)) is float and abs(value) >= _EXACT_DOUBLES]
    if not inexact:
        return document
    exact = json.loads(body, parse_float=Decimal)  # at most 309 digits: the other parser refuses larger numbers
    return {**document, **{name: _integer(exact[name]) for name in inexact}}


def _integer(value: int | Decimal) -> int | Decimal:
    return int(value) if value == int(value) else value
